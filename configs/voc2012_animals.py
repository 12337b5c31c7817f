"""Self-Explainer, classifier and Explainer on six animals of PASCAL VOC 2012: cat, dog, horse, cow, sheep, person.

Method:   decoder on a pretrained EfficientNet-Lite0, several classes a photo, image labels alone.
Hardware: two CPU cores in half an hour, or one GPU in minutes.
Command:  python -m selfexplain_jax.main --config=configs/voc2012_animals.py --workdir=runs/voc2012_animals
Data:     python -m selfexplain_jax.data.prepare --dataset=voc2012 --data_dir=DIR, then --config.data.data_dir=DIR.
Variants: self_explainer, classifier (EfficientNet-Lite0 itself), explainer (Stalder et al. 2022, on that classifier,
          which must be in runs/voc2012_animals_classifier: the command with :classifier behind the config's name).
Score:    mAP .747, mean IoU .147 after 30 minutes: masks of everything. Not solved; docs/results.md has what was seen.
"""

from selfexplain_jax.config import base_config, check_variant
from selfexplain_jax.recipes import classifier_recipe, explainer_recipe, photo_recipe, self_explainer_recipe

VARIANTS = ("self_explainer", "classifier", "explainer")


def get_config(variant="self_explainer"):
    """The experiment of that name."""
    check_variant(__file__, variant, VARIANTS)
    config = photo_recipe(self_explainer_recipe(base_config()))
    config.data.name = "voc2012"
    config.data.options = {"classes": ("cat", "dog", "horse", "cow", "sheep", "person"), "empty": "drop"}
    config.data.image_size = 128
    # At 128 px the last level would have four by four cells.
    config.model.output_stride = 16
    config.data.train_split, config.data.eval_split = "train_aug", "val"
    # The coarse maps tell the six classes apart from the first step on: there is no plateau to be helped over.
    objective = config.objective
    del objective["ranking"]
    objective.classification.start = objective.classification.ramp = 0
    for name in ("object", "background", "evaluator", "area_target", "area_non_target"):
        objective[name].start, objective[name].ramp = 80, 50
    objective.evaluator.weight, objective.area_target.weight, objective.affinity.weight = 1.0, 0.3, 3.0
    # One present class at a time in the object pass, so that each class has a mask of its own.
    config.passes.classes_per_image = 1
    config.evaluation.batch_size = 50
    if variant == "classifier":
        classifier_recipe(config)
    if variant == "explainer":
        config.explainer.classifier = "runs/voc2012_animals_classifier"
        config.explainer.classifier_config = "configs/voc2012_animals.py:classifier"
        config.passes.classes_per_image = 0
        explainer_recipe(config, entropy=3.0, variation=1.0, bounds=0.8, target_area=0.01, non_target_area=0.3)
        # Ten times the paper's in the decoder, which is new; the paper's in the encoder.
        config.train.learning_rate = 1e-3
    return config
