"""Operations of products are known by hand, in loops and in loops in loops; memory is that of the compiled program."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax import costs

MATRIX = np.eye(16, dtype=np.float32)
PRODUCT = 2 * 16**3


def once(x):
    return x @ MATRIX


def five_times(x):
    return jax.lax.fori_loop(0, 5, lambda _, y: y @ MATRIX, x)


def three_times_five_times(x):
    return jax.lax.scan(lambda y, _: (jax.jit(five_times)(y), None), x, length=3)[0] @ MATRIX


def with_an_unused_loop(x):
    return jax.lax.map(lambda row: (row, five_times(x)), x)[0] @ MATRIX


@pytest.mark.parametrize(
    ("function", "products"), [(once, 1), (five_times, 5), (three_times_five_times, 16), (with_an_unused_loop, 1)]
)
def test_loops_count_as_often_as_they_run(function, products):
    # The loops' own counters and comparisons are a few operations more.
    assert costs.operations(function, jnp.asarray(MATRIX)) == pytest.approx(products * PRODUCT, rel=0.01)


def test_contractions_count_each_weight_at_each_cell_as_pytorch_does():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
    # 2 images of 4 x 4 cells; each sees 3 x 3 x 3 numbers through 5 channels, those of the padding too.
    forward = 2 * 2 * 4 * 4 * 3 * 3 * 3 * 5
    assert costs.contractions(convolve, x, kernel) == forward
    # Its gradients are as much each: of the input, with zeros between the cells, and of the kernel.
    gradients = jax.grad(lambda x, kernel: convolve(x, kernel).sum(), argnums=(0, 1))
    assert costs.contractions(gradients, x, kernel) == 2 * forward
    assert costs.contractions(jax.grad(lambda x, kernel: convolve(x, kernel).sum()), x, kernel) == forward
    assert costs.contractions(three_times_five_times, jnp.asarray(MATRIX)) == 16 * PRODUCT
    assert costs.contractions(jax.jit(jnp.matmul), jnp.ones((4, 2, 3)), jnp.ones((4, 3, 5))) == 2 * 4 * 2 * 3 * 5


def test_peak_holds_what_lies_between_arguments_and_result():
    """XLA for CPU tells a peak of arguments and outputs alone, which is none."""

    def through_two_products(x, w):
        hidden = jnp.tanh(x @ w)
        return jnp.tanh(hidden @ w).sum() + hidden.sum()

    shapes = jax.ShapeDtypeStruct((512, 256), np.float32), jax.ShapeDtypeStruct((256, 256), np.float32)
    arguments, hidden = 4 * (512 * 256 + 256 * 256), 4 * 512 * 256
    found = costs.compiled_costs(jax.grad(through_two_products, argnums=1), *shapes)
    # The gradient is as large as w; backwards, one hidden layer at least is there with them.
    assert found["memory_bytes"] >= arguments + 4 * 256 * 256 + hidden
    assert found["compile_seconds"] > 0 and found["operations"] > 2 * 2 * 512 * 256 * 256


@pytest.mark.parametrize("told, peak", [(9_800, 9_800), (10_000, 10_000), (1_400, 12_000), (0, 12_000)])
def test_a_peak_without_the_temporary_memory_is_not_believed(told, peak):
    analysis = types.SimpleNamespace(
        argument_size_in_bytes=1_500,
        output_size_in_bytes=1_000,
        alias_size_in_bytes=500,
        temp_size_in_bytes=10_000,
        generated_code_size_in_bytes=0,
        peak_memory_in_bytes=told,
    )
    memory = costs.memory_of(types.SimpleNamespace(memory_analysis=lambda: analysis))
    assert costs.peak_bytes(memory) == peak and costs.peak_bytes(None) is None
    assert ("peak" in memory) == (told == peak)


def test_memory_is_what_a_call_needs_beside_its_arguments():
    def through_a_large_array(x):
        return jnp.sort(jnp.outer(x, x), axis=0).sum(axis=1)

    few, many = (
        costs.temporary_bytes(through_a_large_array, jax.ShapeDtypeStruct((n,), np.float32)) for n in (64, 256)
    )
    assert few >= 64 * 64 * 4 and 10 < many / few < 20
