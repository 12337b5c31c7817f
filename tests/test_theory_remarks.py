"""What docs/theory.md says beside its propositions, in numbers, and that each of these names the tests that check it.

The game of masks against a trained detector (below P6), and where the self-training term stands still (below P14).
"""

import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_worlds import LN2, cross_entropy, entropy_given, fixed, information, selections, term

from selfexplain_jax.objectives import TERMS

ROOT = pathlib.Path(__file__).resolve().parents[1]
THEORY = (ROOT / "docs" / "theory.md").read_text()


# ---- Masks against a detector ----------------------------------------------------------------------------------------

# A fair label; a pixel that is the label, one that equals it with probability 3/4, one of noise.
PIXELS = 3
HINTS = [
    (1 / 4 * (3 / 4 if hint == y else 1 / 4), y, (y, hint, noise))
    for y in (0, 1)
    for hint in (0, 1)
    for noise in (0, 1)
]
HINT_TELLS = LN2 + 3 / 4 * math.log(3 / 4) + 1 / 4 * math.log(1 / 4)  # .131 nats


def remains(mask):
    """What a detector is shown: the pixels that the mask leaves."""
    return fixed([pixel for pixel in range(PIXELS) if pixel not in mask])


def trained_detector(world, shown, steps=400):
    """Descends the cross-entropy of a table of logits; returns what was found, H(Y) - CE, after every step."""
    entropy = entropy_given(world, lambda y, x: ())
    weight = {}
    for p, y, x in world:
        row = weight.setdefault(shown(y, x), np.zeros(2))
        row[y] += p
    logits, found = {key: np.zeros(2) for key in weight}, []
    for _ in range(steps):
        answers = {key: np.exp(row) / np.exp(row).sum() for key, row in logits.items()}
        found.append(entropy - cross_entropy(world, shown, answers.__getitem__))
        for key, row in weight.items():
            logits[key] += row / row.sum() - answers[key]
    return np.asarray(found)


@pytest.mark.parametrize("mask", selections(PIXELS))
def test_a_trained_detector_finds_the_leak_and_never_more(mask):
    leak = information(HINTS, remains(mask))
    found = trained_detector(HINTS, remains(mask))
    assert found[0] == pytest.approx(0.0) and (np.diff(found) >= -1e-12).all()
    assert (found <= leak + 1e-9).all() and found[-1] == pytest.approx(leak, abs=0.01)


def test_the_game_against_a_trained_detector_has_the_least_leak_as_its_value():
    masks = [mask for mask in selections(PIXELS) if len(mask) <= 1]
    found = {mask: trained_detector(HINTS, remains(mask))[-1] for mask in masks}
    assert min(found, key=found.get) == (0,) and found[(0,)] == pytest.approx(HINT_TELLS, abs=1e-3)
    assert found[(0,)] == pytest.approx(min(information(HINTS, remains(mask)) for mask in masks), abs=1e-3)
    # Two pixels are enough to leave nothing.
    assert trained_detector(HINTS, remains((0, 1)))[-1] == pytest.approx(0.0, abs=1e-9)


def test_what_a_detector_does_not_find_may_be_there():
    # One that was trained on the hint alone, and goes by it wherever it is shown.
    def reader(seen):
        there = dict(zip(*seen, strict=True))
        return {y: 1 / 2 if 1 not in there else 3 / 4 if there[1] == y else 1 / 4 for y in (0, 1)}

    found = {
        mask: entropy_given(HINTS, lambda y, x: ()) - cross_entropy(HINTS, remains(mask), reader)
        for mask in ((), (0,), (1,))
    }
    # Masks against it hide the hint, and leave the pixel that is the label.
    assert min(found, key=found.get) == (1,) and found[(1,)] == pytest.approx(0.0)
    assert found[(0,)] == pytest.approx(HINT_TELLS)
    assert information(HINTS, remains((1,))) == pytest.approx(LN2)


# ---- Where self-training stands still --------------------------------------------------------------------------------

SIDE = 8
LEFT = np.arange(SIDE) < SIDE // 2
TWO_COLOURS = np.where(LEFT[None, :, None], 2.0, -2.0) * np.ones((SIDE, SIDE, 3))
ONE_COLOUR = np.ones((SIDE, SIDE, 3))
LABEL = np.float32([[1.0, 0.0]])


def outputs_of(image, logits):
    """The outputs that `self_training` reads, of one image whose first class is present."""
    maps = np.stack([np.broadcast_to(logits, (SIDE, SIDE)), np.zeros((SIDE, SIDE))], axis=-1)
    return {"image": np.float32(image)[None], "logit_maps": np.float32(maps)[None]}


def gradient_of(image, logits):
    """The gradient [SIDE, SIDE] of the term with respect to the first class's logits."""
    outputs = outputs_of(image, logits)

    @jax.jit
    @jax.grad
    def gradient(maps):
        return TERMS["self_training"]({**outputs, "logit_maps": maps}, LABEL, link="sigmoid").sum()

    return np.array(gradient(jnp.asarray(outputs["logit_maps"])))[0, :, :, 0]


@pytest.mark.parametrize("object_is", ["left", "right", "all", "nothing"])
def test_hard_masks_that_the_smoothing_keeps_are_fixed_points_of_self_training(object_is):
    # Whether the object is the left half, the term cannot know.
    mask = {"left": LEFT, "right": ~LEFT, "all": LEFT | True, "nothing": LEFT & False}[object_is]
    logits = np.where(mask, 12.0, -12.0)
    assert term("self_training", outputs_of(TWO_COLOURS, logits), LABEL)[0] < 1e-4
    assert np.abs(gradient_of(TWO_COLOURS, logits)).max() < 1e-6


def test_a_cell_that_its_neighbours_of_one_colour_outvote_is_no_fixed_point_of_self_training():
    logits = np.full((SIDE, SIDE), -12.0)
    logits[3, 4] = 12.0
    # Smoothed, no cell is above .4: all are background, and the one that is not pays BCE(12, 0) = 12.
    assert term("self_training", outputs_of(ONE_COLOUR, logits), LABEL)[0] == pytest.approx(12 / SIDE**2, rel=1e-3)
    gradient = gradient_of(ONE_COLOUR, logits)
    assert gradient[3, 4] == pytest.approx(1 / SIDE**2, rel=1e-3)
    gradient[3, 4] = 0.0
    assert np.abs(gradient).max() < 1e-6


def test_the_target_of_self_training_is_constant_but_for_jumps():
    # Masks of .73 and .27: the smoothing keeps them, and both are known.
    logits = np.where(LEFT, 1.0, -1.0) * np.ones((SIDE, SIDE))
    pull = (1 - 1 / (1 + math.exp(-1))) / SIDE**2
    assert gradient_of(TWO_COLOURS, logits) == pytest.approx(np.where(LEFT, -pull, pull) * np.ones((SIDE, SIDE)))
    # The term itself falls as that gradient says, so the target stayed where it was.
    ahead, behind = (term("self_training", outputs_of(TWO_COLOURS, logits + h * LEFT), LABEL)[0] for h in (0.1, -0.1))
    assert (ahead - behind) / 0.2 == pytest.approx(-pull * SIDE**2 / 2, rel=1e-2)
    # At the threshold of .6 it jumps: above, all is object, and below, nothing is known.
    threshold = math.log(0.6 / 0.4)
    above, below = (term("self_training", outputs_of(ONE_COLOUR, threshold + h), LABEL)[0] for h in (1e-3, -1e-3))
    assert above == pytest.approx(-math.log(0.6), abs=1e-3) and below == 0.0


# ---- The page --------------------------------------------------------------------------------------------------------


def named_for_propositions():
    """(name, number of the proposition) of each."""
    files = sorted((ROOT / "tests").glob("test_theory*.py"))
    return [found for file in files for found in re.findall(r"^def (test_p(\d+)_\w+)", file.read_text(), re.MULTILINE)]


def test_every_proposition_has_a_test_and_every_test_that_is_named_is_there():
    stated, tested = set(re.findall(r"\*\*P(\d+)\b", THEORY)), {number for _, number in named_for_propositions()}
    assert stated == tested == {str(number) for number in range(1, 27)}
    tests = "".join(file.read_text() for file in (ROOT / "tests").glob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", THEORY):
        assert f"def {name}(" in tests, name


def test_each_proposition_names_all_its_tests_beside_it():
    tests = named_for_propositions()
    for section in re.split(r"\n(?=\*\*P\d+\b)", THEORY)[1:]:
        number = re.match(r"\*\*P(\d+)\b", section).group(1)
        beside = section.partition("\n## ")[0]
        named = set(re.findall(rf"`(test_p{number}_\w+)`", beside))
        assert named == {name for name, of in tests if of == number}, f"P{number}"


def test_the_tests_of_this_file_are_named_on_the_page():
    here = re.findall(r"^def (test_\w+)", pathlib.Path(__file__).read_text(), re.MULTILINE)
    assert {name for name in here if "page" not in name and "proposition" not in name} <= set(
        re.findall(r"`(test_\w+)`", THEORY)
    )
