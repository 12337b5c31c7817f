"""Every term by hand and by its promises; schedules; and what an objective must not say."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax.config import base_config
from selfexplain_jax.objectives import TERMS, compose, terms, total_objective, validate_objective
from selfexplain_jax.types import UserError

LN3 = math.log(3)
LINKS = compose.LINKS


def logit(p):
    return math.log(p / (1 - p))


def outputs_of(**given):
    """Outputs as the passes make them, [B, ...] float32, from nested lists of one image."""
    return {name: np.asarray(value, np.float32)[None] for name, value in given.items()}


def term(name, outputs, label, link="sigmoid", **options):
    return np.asarray(TERMS[name](outputs, jnp.asarray([label], jnp.float32), link=link, **options))


# ---- By hand ---------------------------------------------------------------------------------------------------------

# Two cells, one above the other. sigmoid(log 3) = 3/4, so a score of log 3 costs log(4/3) or, absent, log 4.
MASKS = {"target_mask": [[0.25], [0.75]], "non_target_mask": [[0.5], [0.25]], "image": np.zeros((2, 1, 3))}
CORNER = {"target_mask": [[0.2, 0.6], [0.2, 0.2]], "non_target_mask": np.ones((2, 2)), "image": np.zeros((2, 2, 3))}
SCORES = [LN3, 0.0]
WEIGHTED = {"scores": SCORES, "positive_weights": [3.0, 0.5]}
SHOWN = {"object_scores": [SCORES, [9.0, 9.0]], "object_label": [[1, 0], [0, 0]], "object_valid": [1, 0]}

# Of four cells at (.9, .6, .3, .2) one is to be 1 at least and two at most: (.1 + .3 + .2) / 4.
FOUR_CELLS = np.stack([[[logit(0.3), logit(0.9)], [logit(0.2), logit(0.6)]], np.full((2, 2), 9.0)], axis=-1)
BOUNDS = {"lower": 0.25, "upper": 0.5}

UNLIKE = np.stack([[[logit(0.9), logit(0.7)], [logit(0.2), logit(0.5)]], np.full((2, 2), 9.0)], axis=-1)

# Three by three cells that all say (log 3, 0), but for the middle one.
RING = np.broadcast_to(np.asarray([LN3, 0.0]), (3, 3, 2)).copy()
RING[1, 1] = 9.0
SQUARE = {"form": "probability", "power": 2.0}

# term, link, options, label, outputs, value
TWO_CELLS = {"target_mask": [[0.3, 0.8]]}

BY_HAND = [
    ("classification", "softmax", {}, [1, 0], {"scores": SCORES}, math.log(4 / 3)),
    ("classification", "softmax", {}, [1, 1], {"scores": SCORES}, (math.log(4 / 3) + math.log(4)) / 2),
    ("classification", "sigmoid", {}, [1, 0], {"scores": SCORES}, (math.log(4 / 3) + math.log(2)) / 2),
    ("classification", "sigmoid", {}, [0, 0], {"scores": SCORES}, (math.log(4) + math.log(2)) / 2),
    ("classification", "sigmoid", {}, [1, 0], WEIGHTED, (3 * math.log(4 / 3) + math.log(2)) / 2),
    ("classification", "sigmoid", {}, [0, 1], WEIGHTED, (math.log(4) + 0.5 * math.log(2)) / 2),
    ("ranking", "sigmoid", {}, [0, 1], {"scores": SCORES}, math.log(4)),
    ("ranking", "sigmoid", {}, [0, 0], {"scores": SCORES}, 0.0),
    ("object", "softmax", {}, [1, 0], SHOWN, math.log(4 / 3)),
    ("object", "sigmoid", {}, [1, 1], SHOWN, (math.log(4 / 3) + math.log(2)) / 2),
    # Nothing was shown.
    ("object", "sigmoid", {}, [0, 0], SHOWN | {"object_valid": [0, 0]}, 0.0),
    # The first pass said (1/2, 1/2).
    (
        "object",
        "softmax",
        {"target": "relative"},
        [1, 0],
        SHOWN | {"scores": [5.0, 5.0]},
        (math.log(4 / 3) + math.log(4)) / 2,
    ),
    # No class is absent whose mean could replace the hidden one's logit: 0, as if the network were undecided.
    (
        "object",
        "sigmoid",
        {"target": "relative"},
        [1, 1],
        SHOWN | {"scores": [LN3, 7.0]},
        (0.75 * math.log(4 / 3) + 0.25 * math.log(4) + math.log(2)) / 2,
    ),
    ("background", "sigmoid", {}, [1, 0], {"background_scores": SCORES}, math.log(4) + math.log(2)),
    ("background", "softmax", {}, [1, 0], {"background_scores": SCORES}, math.log(4 / math.sqrt(3)) - math.log(2)),
    ("background", "softmax", {"form": "absent"}, [1, 0], {"background_scores": SCORES}, math.log(8)),
    # H(3/4, 1/4) = log 4 - 3/4 log 3.
    (
        "background",
        "sigmoid",
        {"form": "entropy"},
        [1, 0],
        {"background_scores": SCORES},
        math.log(2) - math.log(4) + 0.75 * LN3,
    ),
    ("background", "sigmoid", {"form": "uniform"}, [1, 0], {"background_scores": [4.0, 4.0]}, 0.0),
    # Half of that, with two classes.
    (
        "background",
        "sigmoid",
        {"form": "mean_entropy"},
        [1, 0],
        {"background_scores": SCORES},
        (math.log(2) - math.log(4) + 0.75 * LN3) / 2,
    ),
    # The square of 3/4; of the mean of 3/4 and 1/2; nothing without a class.
    ("background", "sigmoid", SQUARE, [1, 0], {"background_scores": SCORES}, 9 / 16),
    ("background", "softmax", SQUARE, [0, 1], {"background_scores": SCORES}, 1 / 16),
    ("background", "sigmoid", SQUARE, [1, 1], {"background_scores": SCORES}, 25 / 64),
    ("background", "sigmoid", SQUARE, [0, 0], {"background_scores": SCORES}, 0.0),
    # Nothing is asked of the class that is not shown.
    ("object", "sigmoid", {"target": "present"}, [1, 0], SHOWN, math.log(4 / 3)),
    ("object", "softmax", {"target": "present"}, [1, 0], SHOWN, math.log(4 / 3)),
    (
        "object",
        "sigmoid",
        {"target": "present"},
        [1, 1],
        {"object_scores": [SCORES], "object_label": [[1, 1]], "object_valid": [1]},
        (math.log(4 / 3) + math.log(2)) / 2,
    ),
    # Of the differences down, 0 and .4, and right, .4 and 0, the squares.
    ("squared_smoothness", "sigmoid", {}, [1, 0], CORNER, 0.08 + 0.08),
    ("evaluator", "softmax", {}, [0, 1], {"evaluator_scores": SCORES}, math.log(4)),
    ("evaluator", "sigmoid", {}, [0, 1], {"evaluator_scores": SCORES}, (math.log(4) + math.log(2)) / 2),
    ("area_target", "sigmoid", {}, [1, 0], MASKS, 0.5),
    ("area_non_target", "sigmoid", {}, [1, 0], MASKS, 0.375),
    # Over two rows of two: down 0 and .4, right .4 and 0, for m; nothing for n.
    ("smoothness", "sigmoid", {}, [1, 0], CORNER, 0.2 + 0.2),
    # Two cells that see only each other: 3/10 x 1/5 + 7/10 x 4/5 = .62 for either; nothing where their colours differ.
    ("affinity", "sigmoid", {"reach": 1}, [1, 0], TWO_CELLS | {"image": np.zeros((1, 2, 3))}, 0.62 / 1.001),
    ("affinity", "sigmoid", {"reach": 1}, [1, 0], TWO_CELLS | {"image": [[[0.0] * 3, [3.0] * 3]]}, 0.0),
    ("area_bounds", "sigmoid", BOUNDS, [1, 0], {"logit_maps": FOUR_CELLS}, 0.15),
    # All but the middle cell: softplus(log 3) = log 4; the classes' shares there are 3/4 and 1/4.
    ("border", "sigmoid", {"width": 0.3}, [1, 0], {"logit_maps": RING}, math.log(4) + math.log(2 / math.sqrt(3))),
    # Cells of four colours, which stay as they are: .9 and .7 are the object, .2 is not, and .5 is undecided.
    (
        "self_training",
        "sigmoid",
        {},
        [1, 0],
        {"logit_maps": UNLIKE, "image": np.arange(12).reshape(2, 2, 3) * 9.0},
        -(math.log(0.9) + math.log(0.7) + math.log(0.8)) / 4,
    ),
    # Both classes are present: the stronger has the cell (.9 before .8), and the other is to leave it.
    (
        "self_training",
        "sigmoid",
        {},
        [1, 1],
        {"logit_maps": [[[logit(0.9), logit(0.8)]]], "image": np.zeros((1, 1, 3))},
        -(math.log(0.9) + math.log(0.2)) / 2,
    ),
    # Two cells of one colour (.9 and .5) become .7 both, and so the object.
    (
        "self_training",
        "sigmoid",
        {"reach": 1, "repeats": 1},
        [1, 0],
        {"logit_maps": [[[logit(0.9), 9.0], [0.0, 9.0]]], "image": np.zeros((1, 2, 3))},
        -(math.log(0.9) + math.log(0.5)) / 2,
    ),
    ("binarisation", "sigmoid", {}, [1, 0], MASKS, 0.75),
    ("binarisation", "sigmoid", {}, [1, 0], {"target_mask": [[0.0], [1.0]]}, 0.0),
]


@pytest.mark.parametrize("name, link, options, label, outputs, expected", BY_HAND)
def test_terms_by_hand(name, link, options, label, outputs, expected):
    value = term(name, outputs_of(**outputs), label, link, **options)
    np.testing.assert_allclose(value, [expected], rtol=1e-5, atol=1e-6)


def test_every_term_has_a_value_by_hand():
    assert {row[0] for row in BY_HAND} == set(TERMS)
    choices = {(row[0], option, value) for row in BY_HAND for option, value in row[2].items()}
    # The other values are those that stand where nothing is said.
    assert choices >= {("object", "target", value) for value in ("relative", "present")}
    assert choices >= {("background", "form", value) for value in compose.CHOICES["background", "form"][1:]}


# ---- What every term promises ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_outputs():
    """Outputs of three images with 1, 2 and 0 of four classes; maps of 5 x 5; two classes shown. And the labels."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(0, 2, shape).astype(np.float32)  # noqa: E731
    label = np.asarray([[0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]], np.float32)
    target, non_target = draw(3, 5, 5), draw(3, 5, 5)
    outputs = {
        "scores": draw(3, 4),
        "logit_maps": draw(3, 5, 5, 4),
        "target_logits": target,
        "non_target_logits": non_target,
        "target_mask": 1 / (1 + np.exp(-target)),
        "non_target_mask": 1 / (1 + np.exp(-non_target)),
        "image": draw(3, 5, 5, 3),
        "object_scores": draw(3, 2, 4),
        "object_label": np.stack([label, 0 * label], axis=1),
        "object_valid": np.asarray([[1, 1], [1, 0], [0, 0]], np.float32),
        "background_scores": draw(3, 4),
        "evaluator_scores": draw(3, 4),
    }
    return outputs, label


CHOICES = [(name, {}) for name in TERMS] + [
    (name, {option: value}) for (name, option), values in compose.CHOICES.items() for value in values
]


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("name, options", CHOICES, ids=str)
def test_every_term_is_per_example_finite_and_differentiable(name, options, link, random_outputs):
    outputs, label = random_outputs

    @jax.jit
    def value_and_gradient(outputs, label):
        value, pull = jax.vjp(lambda outputs: TERMS[name](outputs, label, link=link, **options), outputs)
        return value, pull(jnp.ones_like(value))[0]

    value, gradient = jax.tree.map(np.asarray, value_and_gradient(outputs, label))
    assert value.shape == (3,) and np.all(np.isfinite(value))
    assert np.all(value >= -1e-6)
    for part in jax.tree.leaves(gradient):
        assert np.all(np.isfinite(part))
    assert any(np.any(part != 0) for part in jax.tree.leaves(gradient))
    # What happens to one example is no business of the others.
    swapped, _ = value_and_gradient(jax.tree.map(lambda x: x[::-1], outputs), label[::-1])
    np.testing.assert_allclose(swapped[::-1], value, rtol=1e-5, atol=1e-6)


# ---- Relative targets ------------------------------------------------------------------------------------------------


def test_relative_target_under_softmax_is_the_first_answer():
    scores, label = jnp.asarray([SCORES]), jnp.asarray([[1.0, 0.0]])
    target = terms.relative_target(scores, label, jnp.asarray([[[1.0, 0.0], [0.0, 1.0]]]), "softmax")
    np.testing.assert_allclose(target, [[[0.75, 0.25], [0.75, 0.25]]], rtol=1e-5)


def test_relative_target_under_sigmoid_hides_the_present_classes_that_are_not_shown():
    # Classes 0 and 1 are present; the absent ones have the logits -log 3 and -3 log 3: mean -2 log 3, sigmoid 1/10.
    scores, label = jnp.asarray([[LN3, 0.0, -LN3, -3 * LN3]]), jnp.asarray([[1.0, 1.0, 0.0, 0.0]])
    shown = jnp.asarray([[[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]])
    target = terms.relative_target(scores, label, shown, "sigmoid")
    np.testing.assert_allclose(
        target, [[[0.75, 0.1, 0.25, 1 / 28], [0.1, 0.5, 0.25, 1 / 28], [0.75, 0.5, 0.25, 1 / 28]]], rtol=1e-5
    )


@pytest.mark.parametrize("link", LINKS)
def test_relative_target_carries_no_gradient_to_the_first_pass(link, random_outputs):
    outputs, label = random_outputs
    value = lambda scores: TERMS["object"](outputs | {"scores": scores}, label, link=link, target="relative").sum()  # noqa: E731
    np.testing.assert_array_equal(jax.jit(jax.grad(value))(outputs["scores"]), np.zeros((3, 4)))


# ---- Area bounds and total variation ---------------------------------------------------------------------------------


def sorted_mask_loss(logit_maps, label, lower, upper):
    """The definition: sort the cells of each present class; the first a N should be 1, those after b N should be 0."""
    losses = []
    for maps, present in zip(logit_maps, label, strict=True):
        of_classes = []
        for c in np.flatnonzero(present):
            cells = np.sort(1 / (1 + np.exp(-maps[..., c].astype(np.float64).ravel())))[::-1]
            first, last = round(lower * cells.size), round(upper * cells.size)
            of_classes.append((np.abs(1 - cells[:first]).sum() + np.abs(cells[last:]).sum()) / cells.size)
        losses.append(np.mean(of_classes) if of_classes else 0.0)
    return losses


@pytest.mark.parametrize("lower, upper", [(0.05, 0.3), (0.2, 0.6), (0.0, 1.0), (0.0, 0.04), (0.96, 1.0)])
def test_area_bounds_equal_the_sorted_mask_definition(lower, upper, random_outputs):
    outputs, label = random_outputs
    value = terms.area_bounds(outputs, label, link="sigmoid", lower=lower, upper=upper)
    expected = sorted_mask_loss(outputs["logit_maps"], label, lower, upper)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_area_bounds_push_only_what_is_out_of_bounds():
    def bounds(maps):
        return terms.area_bounds({"logit_maps": maps}, jnp.asarray([[1.0, 0.0]]), link="sigmoid", **BOUNDS).sum()

    gradient = jax.jit(jax.grad(bounds))(FOUR_CELLS[None])[0]
    # The largest is raised, the second left alone, the two smallest lowered; the absent class is not touched.
    np.testing.assert_array_equal(np.sign(gradient[..., 0]), [[1, -1], [1, 0]])
    np.testing.assert_array_equal(gradient[..., 1], np.zeros((2, 2)))


def test_area_bounds_look_at_a_given_number_of_classes(random_outputs):
    outputs, _ = random_outputs
    every, first = np.ones((3, 4), np.float32), np.asarray([[1, 0, 0, 0]] * 3, np.float32)
    few = terms.area_bounds(outputs, every, link="sigmoid", max_classes=1)
    np.testing.assert_allclose(few, terms.area_bounds(outputs, first, link="sigmoid"), rtol=1e-5)


def test_affinity_pulls_the_outline_to_the_edge_of_the_image():
    # Dark left half, bright right half; three masks, of the left half and one column off it to either side.
    image = np.zeros((1, 8, 8, 3), np.float32)
    image[:, :, 4:] = 2.0
    columns = np.arange(8)

    def loss(mask):
        mask = np.broadcast_to(np.asarray(mask, np.float32), (1, 8, 8))
        return float(terms.affinity({"image": image, "target_mask": mask}, None, link="sigmoid")[0])

    on_edge, inside, outside = (loss(columns < edge) for edge in (4, 3, 5))
    assert on_edge == pytest.approx(0.0, abs=1e-6)
    assert inside > 0.05 and outside > 0.05
    # Grey costs as well, so the mask is driven to zeros and ones.
    assert loss(np.full(8, 0.5)) == pytest.approx(0.5, abs=1e-3)


def test_total_variation_by_hand():
    # A step of height 1/2 along a column of three rows: of each row's two differences one is 1/2.
    mask = np.asarray([[0.0, 0.5, 0.5]] * 3, np.float32)[None]
    assert terms.total_variation(mask)[0] == pytest.approx(0.25)
    assert terms.total_variation(mask.transpose(0, 2, 1))[0] == pytest.approx(0.25)
    assert terms.total_variation(np.ones_like(mask))[0] == 0
    # Where the image has an edge of squared height 3 x 1/4 the step costs exp(-2 x 3/4); elsewhere nothing changes.
    image = np.repeat(mask[..., None], 3, axis=-1)
    assert terms.total_variation(mask, image, 2.0)[0] == pytest.approx(0.25 * math.exp(-1.5))
    assert terms.total_variation(mask, np.zeros_like(image), 2.0)[0] == pytest.approx(0.25)


# ---- Composition -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start, steps, expected",
    [(0, 0, [1, 1, 1, 1, 1]), (2, 0, [0, 0, 1, 1, 1]), (0, 4, [0.25, 0.5, 0.75, 1, 1]), (2, 2, [0, 0, 0.5, 1, 1])],
)
def test_ramp(start, steps, expected):
    np.testing.assert_allclose([compose.ramp(jnp.int32(step), start, steps) for step in range(5)], expected)


def test_gate_opens_as_the_loss_falls_and_carries_no_gradient():
    loss = jnp.asarray([0.0, 0.2, 0.7, 5.2])
    np.testing.assert_allclose(compose.gate(loss, 2.0, 0.2), [1, 1, math.exp(-1), math.exp(-10)], rtol=1e-5)
    np.testing.assert_array_equal(jax.grad(lambda loss: compose.gate(loss, 2.0, 0.2).sum())(loss), np.zeros(4))


def test_first_step_of_terms_that_count():
    objective = {
        "classification": {"weight": 1.0},
        "object": {"weight": 1.0, "start": 30},
        "background": {"start": 20},
        "evaluator": {"weight": 0.0, "start": 10},
    }
    assert compose.first_step(objective, ("object", "evaluator")) == 30
    assert compose.first_step(objective, ("object", "background")) == 20
    assert compose.first_step(objective, ("classification", "object")) == 0
    assert compose.first_step(objective, ("evaluator", "ranking")) is None


def total(objective, outputs, label, valid=(1.0,), step=0):
    label, valid = np.asarray(label, np.float32), np.asarray(valid, np.float32)
    return jax.tree.map(float, total_objective(outputs, label, valid, jnp.int32(step), objective, "softmax"))


def test_total_is_the_weighted_sum_of_means_over_valid_examples():
    outputs = {
        "scores": np.asarray([SCORES, SCORES, [50.0, -50.0]], np.float32),
        "target_mask": np.asarray([[[0.2]], [[0.4]], [[1.0]]], np.float32),
    }
    objective = {"classification": {"weight": 2.0}, "area_target": {"weight": 10.0, "start": 1, "ramp": 2}}
    labels, valid = [[1, 0], [0, 1], [0, 1]], [1.0, 1.0, 0.0]
    classification = (math.log(4 / 3) + math.log(4)) / 2
    for step, strength in enumerate([0.0, 0.5, 1.0]):
        loss, means = total(objective, outputs, labels, valid, step)
        assert means == pytest.approx({"classification": classification, "area_target": 0.3}, rel=1e-5)
        assert loss == pytest.approx(2 * classification + strength * 10 * 0.3, rel=1e-5)
    # Nothing valid: nothing to learn, and no division by zero.
    assert total(objective, outputs, labels, [0.0, 0.0, 0.0])[0] == 0


def test_gate_holds_back_the_other_terms_until_the_class_is_known():
    outputs = {"scores": np.asarray([SCORES], np.float32), "target_mask": np.full((1, 1, 1), 0.5, np.float32)}
    gated = {"weight": 1.0, "gate_steepness": 2.0, "gate_offset": 0.2}
    loss, means = total({"classification": gated, "area_target": gated}, outputs, [[0, 1]])
    assert means["area_target"] == pytest.approx(0.5)
    assert loss == pytest.approx(math.log(4) + 0.5 * math.exp(-2 * (math.log(4) - 0.2)), rel=1e-5)
    loss, _ = total({"area_target": gated}, outputs, [[0, 1]])  # No classification to wait for.
    assert loss == pytest.approx(0.5)


# ---- Refusals --------------------------------------------------------------------------------------------------------


def config_with(objective=None, **model):
    config = base_config()
    for name, options in (objective or {}).items():
        config.objective[name] = options
    config.model.update(model)
    return config


def test_every_term_with_its_defaults_is_valid():
    validate_objective(config_with({name: {} for name in TERMS}))
    validate_objective(config_with({"object": {"weight": 0.5, "start": 10, "ramp": 5, "target": "relative"}}))
    validate_objective(config_with({"area_bounds": {"weight": 1, "lower": 0.0, "upper": 1.0}}, link="softmax"))


@pytest.mark.parametrize(
    "objective, message",
    [
        ({"clasification": {"weight": 1.0}}, "config.objective.clasification is no known term.*classification"),
        ({"object": 1.0}, 'config.objective.object = 1.0 must be {"weight": number'),
        ({"object": {"wieght": 1.0}}, "config.objective.object.wieght is no option of that term.*target.*weight"),
        ({"area_target": {"edge": 1.0}}, "config.objective.area_target.edge is no option"),
        ({"classification": {"link": "softmax"}}, "config.objective.classification.link is no option"),
        ({"object": {"target": "sideways"}}, "object.target = 'sideways' is unknown.*absolute.*relative"),
        ({"background": {"form": 2.0}}, "background.form = 2.0 is unknown.*absent"),
        ({"smoothness": {"weight": "a lot"}}, "config.objective.smoothness.weight = 'a lot' must be a number"),
        ({"smoothness": {"weight": True}}, "smoothness.weight = True must be a number"),
        ({"affinity": {"reach": 0}}, "affinity needs a whole number of cells as reach.*reach = 0"),
        ({"affinity": {"reach": 1.5}}, "affinity needs a whole number of cells as reach.*reach = 1.5"),
        ({"affinity": {"scale": 0.0}}, "affinity needs .* a scale above 0.*scale = 0.0"),
        ({"area_bounds": {"lower": 0.5, "upper": 0.2}}, "area_bounds needs 0 <= lower < upper <= 1"),
        ({"area_bounds": {"lower": 0.3}}, "area_bounds needs 0 <= lower < upper <= 1"),
        ({"area_bounds": {"upper": 1.5}}, "area_bounds needs 0 <= lower < upper <= 1"),
        ({"area_bounds": {"lower": -0.1}}, "area_bounds needs 0 <= lower < upper <= 1"),
    ],
    ids=str,
)
def test_bad_objectives_are_refused(objective, message):
    with pytest.raises(UserError, match=message):
        validate_objective(config_with(objective))


def test_no_term_at_all_is_refused():
    config = base_config()
    del config.objective.classification
    with pytest.raises(UserError, match="config.objective is empty"):
        validate_objective(config)


def test_gate_without_the_loss_that_it_waits_for_is_refused():
    config = config_with({"ranking": {}, "area_target": {"gate_steepness": 2.0}})
    validate_objective(config)
    del config.objective.classification
    with pytest.raises(UserError, match="area_target.gate_steepness waits for the loss of 'classification'"):
        validate_objective(config)


def test_unknown_link_is_refused():
    with pytest.raises(UserError, match="config.model.link = 'probit' is unknown.*softmax.*sigmoid"):
        validate_objective(config_with(link="probit"))
