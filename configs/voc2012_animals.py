"""Self-Explainer, classifier and Explainer on six animals of PASCAL VOC 2012: cat, dog, horse, cow, sheep, person.

Method:   decoder on a pretrained EfficientNet-Lite0, several classes a photo, image labels alone.
Hardware: two CPU cores in 36 minutes.
Command:  python -m selfexplain_jax.main --config=configs/voc2012_animals.py --workdir=runs/voc2012_animals
Data:     python -m selfexplain_jax.data.prepare --dataset=voc2012 --data_dir=DIR, then --config.data.data_dir=DIR.
Variants: self_explainer, classifier (EfficientNet-Lite0 itself), explainer (Stalder et al. 2022, on that classifier,
          which must be in runs/voc2012_animals_classifier: the command with :classifier behind the config's name).
Score:    mean IoU .516 (.532 refined), continuous IoU .529, mAP .918 on 345 validation images (seed 0; docs/results.md).
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
    # Small images cost most: frozen features tell the six classes apart at an mAP of .82 at 128 px and .92 at 320.
    config.data.image_size = 320
    config.model.output_stride = 32 if variant == "classifier" else 16
    config.model.decoder_width = 32
    # Far enough to fill an animal of one colour from its head; three rounds gave .026 of mean IoU over one.
    config.model.edge_distances = (8, 4, 2, 1) * 3
    config.model.pooling_temperature = 0.25
    config.data.train_split, config.data.eval_split = "train_aug", "val"
    # The coarse maps tell the six classes apart from the first step on: there is no plateau to be helped over.
    objective = config.objective
    del objective["ranking"]
    # Against the sum of all that shapes the masks, else the classes are forgotten for it.
    objective.classification = {"weight": 3.0}
    for name in ("area_target", "area_non_target", "affinity", "smoothness"):
        objective[name].start, objective[name].ramp = 60, 60
    objective.area_target.weight, objective.affinity.weight = 0.05, 3.0
    objective.self_training = {"weight": 1.0, "start": 150, "ramp": 50}
    # The last passes take most of the time and change little: a frozen encoder has little to learn from them.
    for name in ("object", "background", "evaluator"):
        objective[name].start, objective[name].ramp = 380, 20
    objective.object.weight, objective.background.weight = 1.0, 0.25
    # A mask that hides the animal asks for doubt of a class that is not to be seen, which costs what is.
    objective.evaluator.weight = 0.1
    config.train.steps = 600
    # One present class at a time in the object pass, so that each class has a mask of its own.
    config.passes.classes_per_image = 1
    config.evaluation.batch_size, config.evaluation.pictures = 50, 12
    config.evaluation.refine_rounds = 4
    if variant == "self_explainer":
        # Frozen, the encoder takes no part in a code between masks and reader, and image passes need no gradient of it.
        config.train.backbone_rate = 0.0
        config.train.learning_rate = 4e-3
        config.passes.image_size = 192
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
