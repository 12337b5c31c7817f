"""What a function costs as XLA compiles it: floating-point operations, and memory. Both hold on any machine.

XLA counts the body of a loop once, however often it runs. Here every loop counts as often as it does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

_MEMORY = {
    "arguments": "argument_size_in_bytes",
    "outputs": "output_size_in_bytes",
    # Outputs that take the place of arguments: the donated state.
    "shared": "alias_size_in_bytes",
    "temporary": "temp_size_in_bytes",
    "program": "generated_code_size_in_bytes",
}


def operations(function: Callable, *arguments: Any) -> float:
    """Returns the floating-point operations of one call, as XLA counts those of the programs that it compiles.

    With x(f) XLA's number for f, in which each loop has run once, ops(f) = x(f) + sum over the loops directly in f of
    length * ops(body) - x(body). Loops whose length no one knows before they run count once; what nobody uses of a
    result does not count. Compiles f and every loop in it, and runs nothing.

    Args:
      function: pure; arrays that it carries are arguments of what is compiled, so that XLA computes nothing of them
        beforehand.
      *arguments: arrays, or their shapes and types.
    """
    return compiled_costs(function, *arguments)["operations"]


def compiled_costs(function: Callable, *arguments: Any) -> dict[str, Any]:
    """What one call costs by its one compilation, and those of its loops; runs nothing.

    Args:
      function, arguments: as of `operations`.

    Returns:
      {"operations": see there, "memory_bytes": see `peak_bytes`, "compile_seconds": of the whole call, less where a
      compilation cache has it}.
    """
    jaxpr = _open(function, *arguments)
    started = time.perf_counter()
    compiled = _compile(jaxpr)
    seconds = time.perf_counter() - started
    counted, _ = _of_jaxpr(jaxpr, compiled)
    return {"operations": counted, "memory_bytes": peak_bytes(memory_of(compiled)), "compile_seconds": seconds}


def contractions(function: Callable, *arguments: Any) -> float:
    """Returns the floating-point operations of the products and convolutions of one call, and of nothing else.

    Two for each weight that meets each cell: zeros of a padding count, where XLA leaves them out, and zeros between the
    cells of a dilated input do not. So counts torch.utils.flop_counter. Compiles nothing; loops as in `operations`.

    Args:
      function: pure. *arguments: arrays, or their shapes and types.
    """
    return _contractions(_open(function, *arguments))


def temporary_bytes(function: Callable, *arguments: Any) -> int:
    """Returns the bytes that one call needs beside its arguments and its result; compiles and runs nothing."""
    return memory_of(_compile(_open(function, *arguments)))["temporary"]


def memory_of(compiled: jax.stages.Compiled) -> dict[str, int] | None:
    """What the compiler says of a program's memory in bytes: {"arguments", "outputs", "shared", "temporary", "program",
    "total"} and, of some backends, "peak", the most that is needed at one time; None where the backend does not tell.

    A peak with no room for half of the temporary memory is left out: XLA for CPU counts arguments and outputs alone.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    memory = {name: int(getattr(analysis, field)) for name, field in _MEMORY.items()}
    memory["total"] = sum(memory.values()) - 2 * memory["shared"]
    peak = int(getattr(analysis, "peak_memory_in_bytes", 0))
    outside = memory["arguments"] + memory["outputs"] - memory["shared"]
    whole = peak > 0 and peak >= outside + memory["temporary"] / 2
    return memory | ({"peak": peak} if whole else {})


def peak_bytes(memory: dict[str, int] | None) -> int | None:
    """The most that a program needs at one time, arguments included: "peak" of what `memory_of` says, else "total"."""
    return None if memory is None else memory.get("peak", memory["total"])


def _open(function: Callable, *arguments: Any) -> core.Jaxpr:
    """The function's jaxpr, with the arrays that it carries among the arguments, and without what is not used."""
    closed = jax.make_jaxpr(function)(*arguments)

    def open_function(carried, *flat):
        return core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, carried))(*flat)

    return _used(jax.make_jaxpr(open_function)(closed.consts, *jax.tree.leaves(arguments)).jaxpr)


def _used(jaxpr: core.Jaxpr) -> core.Jaxpr:
    """Without operations whose results nobody uses, as XLA leaves them out too."""
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def _compile(jaxpr: core.Jaxpr) -> jax.stages.Compiled:
    shapes = [jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype) for variable in jaxpr.invars]
    return jax.jit(core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, []))).lower(*shapes).compile()


def _of_jaxpr(jaxpr: core.Jaxpr, compiled: jax.stages.Compiled | None = None) -> tuple[float, float]:
    """(all operations, XLA's number, in which loops run once)."""
    seen = ((compiled or _compile(jaxpr)).cost_analysis() or {}).get("flops", 0.0)
    total = seen
    for length, body in _loops(jaxpr):
        inside, once = _of_jaxpr(body)
        total += length * inside - once
    return total, seen


def _contractions(jaxpr: core.Jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        parameters, name = equation.params, equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            _, inputs, *window = parameters["dimension_numbers"].rhs_spec
            kernel = equation.invars[1].aval.shape
            seen = kernel[inputs] * math.prod(kernel[axis] for axis in window)
            total += 2.0 * equation.outvars[0].aval.size * seen / math.prod(parameters["lhs_dilation"])
        else:
            times = parameters["length"] if name == "scan" else 1
            total += times * sum(map(_contractions, core.jaxprs_in_params(parameters)))
    return total


def _loops(jaxpr: core.Jaxpr) -> Iterator[tuple[int, core.Jaxpr]]:
    """(length, body) of the loops of known length that lie in no other loop, also in functions called on the way."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation.params["length"], equation.params["jaxpr"].jaxpr
        elif equation.primitive.name != "while":
            for inner in core.jaxprs_in_params(equation.params):
                yield from _loops(inner)
