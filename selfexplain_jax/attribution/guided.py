"""Guided backpropagation, of any function: its ReLUs are found in the traced program and get another backward rule."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from selfexplain_jax.attribution.gradient import class_gradients, reduce_channels
from selfexplain_jax.attribution.inputs import check_inputs, traceable
from selfexplain_jax.types import Predictor, UserError

CALLS = ("jit", "pjit", "checkpoint", "remat2", "closed_call", "core_call")
"""Operations that stand for the program inside of them: they are replaced by it."""

KEEPS_ZERO = ("broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "copy", "stop_gradient")
PLAIN = ("max", "min", *KEEPS_ZERO)
"""What a ReLU with a derivative of its own (those of `jax.nn`) may consist of."""


def guided_backpropagation(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    *,
    rng: jax.Array | None = None,
    channels: str = "abs_max",
) -> jax.Array:
    """Guided backpropagation (Springenberg et al. 2015, section 3.4): negative gradients stop at every ReLU.

    Behind y = relu(x) the gradient g becomes g [x > 0] [g > 0]. The map looks like the image's edges and hardly depends
    on the network's weights (Adebayo et al. 2018): it is here to be compared with. See `guided` for what counts as a
    ReLU.

    Args:
      predictor: its scores are differentiated.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      rng: not used.
      channels: one of `gradient.CHANNELS`. The paper shows signed colours and reduces nothing; the default is that of
        the plain gradient, so that the two can be compared.

    Returns:
      float32 [B, k, H, W], in units of the score per unit of the normalised image.

    Raises:
      UserError: bad images, class ids or option, or a predictor in which no ReLU is found.
    """
    del rng
    images, class_ids = check_inputs(predictor, images, class_ids)
    return _guided_gradient(traceable(predictor.scores), images, class_ids, channels=channels)


def guided(function: Callable) -> Callable:
    """The same function of one array, whose ReLUs let positive gradients alone pass.

    A ReLU is `jax.nn.relu`, `jax.nn.relu6`, max(x, 0) or where(x > 0, x, 0), wherever they are called: the program is
    traced, and the operations in it are read. max(mean(x^2) - mean(x)^2, 0), by which normalisation layers keep a
    variance from rounding below zero, is none.

    Raises:
      UserError: (when called) no ReLU is found, or one in a loop with an open end or under a hand-written gradient,
        which cannot be rewritten.
    """

    def rewritten(x: jax.Array) -> jax.Array:
        program, shape = jax.make_jaxpr(function, return_shape=True)(x)
        found: list[str] = []
        flat = [Value(leaf) for leaf in jax.tree.leaves(x)]
        outputs = _evaluate(program.jaxpr, [Value(const) for const in program.consts], flat, found)
        if not found:
            raise UserError(
                "Guided backpropagation changes the gradient of ReLUs, and no ReLU is found in this predictor (relu,"
                " relu6, max(x, 0) or where(x > 0, x, 0)): use 'gradient', which would be the same."
            )
        return jax.tree.unflatten(jax.tree.structure(shape), [output.array for output in outputs])

    return rewritten


class Value(NamedTuple):
    """A value of the program, and what is known of it.

    role: "zero"; "square" (of something); "variance" (something less a square); "positive" (where `of` is above zero).
    """

    array: Any
    role: str = ""
    of: Any = None


@jax.custom_vjp
def _gate(x):
    """The identity, behind which negative gradients stop."""
    return x


_gate.defvjp(lambda x: (x, None), lambda _, gradient: (jnp.maximum(gradient, 0),))


@functools.partial(jax.jit, static_argnames="channels")
def _guided_gradient(scores, images, class_ids, *, channels):
    return reduce_channels(class_gradients(guided(scores), images, class_ids), channels)


def _evaluate(program: core.Jaxpr, consts: list[Value], inputs: list[Value], found: list[str]) -> list[Value]:
    """Runs the program operation by operation, ReLUs replaced; what was replaced is added to `found`."""
    known = dict(zip([*program.constvars, *program.invars], [*consts, *inputs], strict=True))

    def read(atom):
        if not isinstance(atom, core.Literal):
            return known[atom]
        return Value(atom.val, "zero" if np.ndim(atom.val) == 0 and atom.val == 0 else "")

    for operation in program.eqns:
        outputs = _run(operation, [read(atom) for atom in operation.invars], found)
        known.update(zip(operation.outvars, outputs, strict=True))
    return [read(atom) for atom in program.outvars]


def _run(operation, inputs: list[Value], found: list[str]) -> list[Value]:
    """The values of one operation."""
    name, params = operation.primitive.name, operation.params
    x = _input_of_relu(name, inputs)
    if x is not None:
        found.append(name)
        # jax.nn.relu has gradient 0 at 0, as the papers do; that of max is one half there.
        return [Value(_gate(jax.nn.relu(x.array)))]
    inner = [value for key in params for value in _programs(params[key])]
    if name in CALLS and len(inner) == 1:
        return _evaluate(inner[0].jaxpr, [Value(const) for const in inner[0].consts], inputs, found)
    outputs = None
    if name == "custom_jvp_call" and _is_relu(inner[0]):
        # It keeps the derivative that it has, e.g. that of relu6 above 6.
        found.append(name)
        outputs = [_gate(output) for output in _bind(operation, params, inputs)]
    elif name in ("scan", "cond"):
        params = {key: _rewritten_params(value, found) for key, value in params.items()}
    elif name in ("while", "custom_vjp_call") and any(_has_relu(program) for program in inner):
        kind = "a loop with an open end" if name == "while" else "a function with a gradient written by hand"
        raise UserError(f"Guided backpropagation cannot change the gradient of a ReLU inside of {kind} ({name}).")
    outputs = _bind(operation, params, inputs) if outputs is None else outputs
    role, of = _role_of(name, params, inputs)
    return [Value(output, role, of) for output in outputs]


def _bind(operation, params, inputs: list[Value]) -> list:
    bound = operation.primitive.get_bind_params(params)
    # Older versions of JAX give the functions inside apart from the other parameters.
    functions, bound = bound if isinstance(bound, tuple) else ((), bound)
    outputs = operation.primitive.bind(*functions, *(value.array for value in inputs), **bound)
    return list(outputs) if operation.primitive.multiple_results else [outputs]


def _input_of_relu(name: str, inputs: list[Value]) -> Value | None:
    """The x of max(x, 0), max(0, x) or where(x > 0, x, 0), if the operation is one of these."""
    if name == "max":
        for x, other in (inputs, inputs[::-1]):
            if other.role == "zero" and x.role not in ("zero", "variance"):
                return x
    if name == "select_n" and len(inputs) == 3:
        where, otherwise, x = inputs
        if where.role == "positive" and where.of is x.array and otherwise.role == "zero":
            return x
    return None


def _role_of(name: str, params: dict, inputs: list[Value]) -> tuple[str, Any]:
    """What is known of an operation's outputs."""
    if name in KEEPS_ZERO and inputs[0].role in ("zero", "square", "variance"):
        return inputs[0].role, None
    squared = name == "mul" and inputs[0].array is inputs[1].array
    if squared or name == "square" or (name == "integer_pow" and params["y"] == 2):
        return "square", None
    if name == "sub" and inputs[1].role == "square":
        return "variance", None
    if name in ("gt", "ge") and inputs[1].role == "zero":
        return "positive", inputs[0].array
    if name in ("lt", "le") and inputs[0].role == "zero":
        return "positive", inputs[1].array
    return "", None


def _programs(parameter) -> Iterator[core.ClosedJaxpr]:
    """The programs in a parameter of an operation."""
    for value in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
        if isinstance(value, core.ClosedJaxpr):
            yield value
        elif isinstance(value, core.Jaxpr):
            yield core.ClosedJaxpr(value, ())


def _names(program: core.ClosedJaxpr) -> Iterator[str]:
    """Names of all operations, those that stand for their inside apart."""
    for operation in program.jaxpr.eqns:
        inner = [value for key in operation.params for value in _programs(operation.params[key])]
        if operation.primitive.name not in CALLS:
            yield operation.primitive.name
        for value in inner:
            yield from _names(value)


def _is_relu(program: core.ClosedJaxpr) -> bool:
    """Whether a function of one array with a derivative of its own is relu or relu6, and not, say, logaddexp."""
    names = list(_names(program))
    return (
        len(program.jaxpr.invars) == 1 and names.count("max") == 1 and set(names) <= set(PLAIN) and _has_relu(program)
    )


def _has_relu(program: core.ClosedJaxpr) -> bool:
    """Whether a ReLU is anywhere in the program, found by tracing it without computing."""
    found: list[str] = []

    def run(*arrays):
        return [
            v.array
            for v in _evaluate(program.jaxpr, [Value(c) for c in program.consts], list(map(Value, arrays)), found)
        ]

    jax.eval_shape(run, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in program.in_avals))
    return bool(found)


def _rewritten_params(parameter, found: list[str]):
    """The parameter of a loop or a branch, with the ReLUs of the programs in it replaced."""
    if isinstance(parameter, (tuple, list)):
        return type(parameter)(_rewritten_params(value, found) for value in parameter)
    if not isinstance(parameter, core.ClosedJaxpr):
        return parameter

    def run(*arrays):
        consts = [Value(const) for const in parameter.consts]
        return [v.array for v in _evaluate(parameter.jaxpr, consts, list(map(Value, arrays)), found)]

    return jax.make_jaxpr(run)(*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in parameter.in_avals))
