"""Self-Explainer, and the Explainer of a plain classifier, on the synthetic set: 64 px, eight classes, image labels.

Method:   U-Net whose masks classify; object, background and evaluator passes (docs/theory.md has the reasons).
Hardware: two CPU cores.
Command:  python -m selfexplain_jax.main --config=configs/synthetic.py --workdir=runs/synthetic
Variants: configs/synthetic.py:NAME with NAME one of VARIANTS. Measured scores and times: docs/results.md.

The Explainer (Stalder et al. 2022) takes two commands; `real_time_saliency` (Dabkowski & Gal 2017) in the place of
`explainer` is the same network with another loss:
  python -m selfexplain_jax.main --config=configs/synthetic.py:classifier --workdir=runs/synthetic_classifier
  python -m selfexplain_jax.main --config=configs/synthetic.py:explainer --workdir=runs/synthetic_explainer
`random_label` and `random_label_classifier` are Self-Explainer and classifier on shuffled labels, for the sanity check
of metrics/sanity.py; `vit_classifier` is a small vision transformer, for the methods that read its attention.
"""

from selfexplain_jax.config import base_config, check_variant
from selfexplain_jax.recipes import (
    explainer_recipe,
    real_time_saliency_recipe,
    scores_recipe,
    self_explainer_recipe,
    start_later,
)

VARIANTS = (
    "object",
    "texture",
    "shape",
    "multi",
    "confounded",
    "confounded_classifier",
    "classifier",
    "multi_classifier",
    "random_label",
    "random_label_classifier",
    "vit_classifier",
    "explainer",
    "real_time_saliency",
)


def get_config(variant="object"):
    """The experiment of that name."""
    check_variant(__file__, variant, VARIANTS)
    config = self_explainer_recipe(base_config())
    config.data.name = "synthetic"
    if variant == "texture":
        # Any patch of the object names it; shapes say nothing.
        config.data.options = {"label": "texture"}
    if variant == "shape":
        # The outline alone names it; textures say nothing.
        # Outlines take many images to learn, and these cost nothing to draw.
        config.data.options = {"label": "shape", "train_size": 400_000}
        config.data.flip = True
        # An outline is read from a distance: a third level, a slower rate, and most of the training for the scores
        # alone, at half the time of a step, since they rise slowly. What lies along the border is no class: without
        # that the scores stay at chance for twice as long. A pool further from the mean helps them too.
        config.model.widths = (48, 64, 96)
        config.train.learning_rate = 2e-3
        config.train.steps = 7200
        config.objective.border = {"weight": 1.0}
        config.model.initial_temperature, config.model.pooling_temperature = 1.0, 0.4
        config.model.temperature_steps = 5000
        start_later(config, 5200, but=("border",))
        # Another image's mask has an outline too, which here is a class: of masks that know nothing, blobs alone.
        config.passes.evaluator_masks = ("blobs",)
        config.objective.evaluator.weight = 0.5
        config.objective.classification.weight, config.objective.ranking.weight = 3.0, 2.0
        # A mask of the object's middle has an outline of its own, which names a wrong class, and leaves the true one in
        # the background: both passes weigh more, the area less, and colour carries the mask to the outline.
        config.objective.object.weight, config.objective.background.weight = 4.0, 3.0
        config.objective.area_target.weight, config.objective.affinity.weight = 0.05, 30.0
    if variant.startswith("multi"):
        config.data.options = {"min_objects": 1, "max_objects": 3}
        # One present class at a time in the object pass, so that each class has a mask of its own.
        config.passes.classes_per_image = 1
        # Small objects need a pool that does not weigh a class by its area, and longer on their own to be learned.
        config.train.steps = 5200
        config.model.initial_temperature, config.model.pooling_temperature = 0.8, 0.5
        config.model.temperature_steps = 1500
        start_later(config, 1200, but=("classification",))
        config.objective.classification.weight = 3.0
        # What lies along the border is no class: scores rise sooner (see "shape").
        config.objective.border = {"weight": 0.5}
    if variant.startswith("confounded"):
        # In nine of ten training images the background is that of the label; in the test images never.
        config.data.options = {"confounding": 0.9}
    if variant == "confounded":
        # Labels cannot tell which of the two is the object. A prior can: the border is background.
        config.objective.border = {"weight": 2.0}
        # With tight masks, early, the object pass shows objects on backgrounds of other classes; there the network
        # itself must learn, so its weights are live, and the image pass, which the background answers, weighs less.
        config.passes.weights = "live"
        config.passes.infills = ("other_image", "color_noise")
        config.objective.area_target.weight = 0.6
        config.objective.affinity.weight, config.objective.affinity.start = 20.0, 500
        config.objective.object.weight = 4.0
        config.objective.classification.weight = config.objective.ranking.weight = 0.5
    if variant.endswith("classifier"):
        # The scores of the image alone. confounded_classifier keeps its masks, to be measured; the others have none.
        scores_recipe(config)
    if variant.startswith("random_label"):
        config.data.shuffle_labels = True
    if variant in ("classifier", "multi_classifier", "random_label_classifier", "vit_classifier"):
        config.method = "classifier"
    if variant == "vit_classifier":
        config.model.name = "vit"
        # Two convolutions, then 8 x 8 patches of 8 px as tokens of 64 channels: two heads, three blocks.
        config.model.widths, config.model.stem_stride, config.model.encoder_depth = (32, 64, 64), 8, 3
        config.train.learning_rate, config.train.warmup_steps = 2e-3, 200
    if variant in ("explainer", "real_time_saliency"):
        config.explainer.classifier = "runs/synthetic_classifier"
        config.explainer.classifier_config = "configs/synthetic.py:classifier"
        # From random weights the masks of all classes came to lie on the one object: nothing in these losses says which
        # class it is but the area of the absent ones, and masks that know classes already are what it can tell apart.
        config.explainer.start_from_classifier = True
        if variant == "explainer":
            # Weights of the paper's VOC runs (the entropy's of that with a ResNet-50, the others of that with a
            # VGG-16), but for the absent classes' area, .3 there, with which their masks came back; objects cover 15 %.
            explainer_recipe(config, entropy=3.0, variation=1.0, bounds=1.0, target_area=0.1, non_target_area=2.0)
        else:
            real_time_saliency_recipe(config)
        # A small network on small images takes a higher rate than a pretrained one.
        config.train.batch_size, config.train.learning_rate = 32, 2e-3
        config.train.steps = 1500
    return config
