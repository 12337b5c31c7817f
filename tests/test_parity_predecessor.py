"""Our terms are the first implementation's losses in tests/parity/predecessor_losses.py, whose numbers are kept.

tests/parity/generate_predecessor.py wrote them, with loops over images and classes.
"""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.predecessor_cases import CASES, LOWER, TEMPERATURE, UPPER

from selfexplain_jax.metrics import segmentation
from selfexplain_jax.models import masking, pooling
from selfexplain_jax.objectives import compose, terms

FOLDER = pathlib.Path(__file__).parent / "parity"
GOLDENS = np.load(FOLDER / "predecessor.npz")


@jax.jit
def found_here(maps, label):
    """Our terms, by the names of generate_predecessor.py."""
    target = jax.nn.sigmoid(masking.target_logits(maps, label))
    other = jax.nn.sigmoid(masking.non_target_logits(maps, label))
    scores = pooling.softmax_pool(maps, TEMPERATURE)
    outputs = {"logit_maps": maps, "image": maps, "background_scores": scores}
    outputs |= {"target_mask": target, "non_target_mask": other}
    # Theirs is the sum over the present classes, ours the mean.
    bounds = terms.area_bounds(outputs, label, link="sigmoid", lower=LOWER, upper=UPPER) * label.sum(axis=1)
    sigmoid = terms.cross_entropy(scores, label, "sigmoid").mean()
    return {
        "scores": scores,
        "target_mask": target,
        "non_target_mask": other,
        "softmax": terms.cross_entropy(scores, label, "softmax").mean(),
        "sigmoid": sigmoid,
        "entropy": terms.background(outputs, label, link="softmax", form="entropy").mean(),
        "area_bounds": bounds.mean(),
        "smoothness": terms.smoothness(outputs, label, link="sigmoid").mean(),
        "gate": compose.gate(sigmoid, 2.0, 0.2),
        "iou": segmentation.iou(target, (other > target).astype(jnp.float32), jnp.ones_like(target))[0],
    }


@pytest.mark.parametrize("case", CASES)
def test_terms_are_those_of_the_loops(case):
    found = found_here(*CASES[case]())
    assert {f"{case}/{name}" for name in found} == {name for name in GOLDENS if name.startswith(f"{case}/")}
    for name, value in found.items():
        np.testing.assert_allclose(value, GOLDENS[f"{case}/{name}"], rtol=1e-5, atol=1e-6, err_msg=name)


def test_golden_numbers_of_the_loops_are_those_worked_by_hand():
    """What is stored, and no code of this project: that the parity tests compare with the right thing."""
    # Masks of .8 .5 .2 .5 for the present class and of .5 for the other.
    hand = {name.removeprefix("by_hand/"): GOLDENS[name] for name in GOLDENS if name.startswith("by_hand/")}
    np.testing.assert_allclose(hand["target_mask"], [[[0.8, 0.5], [0.2, 0.5]]], rtol=1e-6)
    # Logits log 4, 0, -log 4, 0 with weights 16, 1, 1/16, 1 of the pool.
    score = (16 - 1 / 16) * math.log(4) / (16 + 1 + 1 / 16 + 1)
    np.testing.assert_allclose(hand["scores"], [[score, 0]], rtol=1e-5)
    np.testing.assert_allclose(hand["softmax"], math.log(1 + math.exp(-score)), rtol=1e-5)
    # The largest cell of four should be 1, the third and fourth 0.
    np.testing.assert_allclose(hand["area_bounds"], (0.2 + 0.5 + 0.2) / 4, rtol=1e-6)
    np.testing.assert_allclose(hand["smoothness"], (0.6 + 0.0) / 2 + (0.3 + 0.3) / 2, rtol=1e-6)
