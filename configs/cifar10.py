"""Self-Explainer on CIFAR-10 (TFDS cifar10/3.0.2): 32 px, ten classes, from the start without other weights.

Method:   as configs/synthetic.py, on a U-Net of three levels that sees colours.
Hardware: two CPU cores, or one GPU.
Command:  python -m selfexplain_jax.main --config=configs/cifar10.py --workdir=runs/cifar10
Data:     python -m selfexplain_jax.data.prepare --dataset=cifar10 --data_dir=DIR, then --config.data.data_dir=DIR.
Variants: self_explainer, classifier (the same network on its scores alone).
Score:    accuracy .628 in 15 minutes on two cores, the classifier's .629 (seed 0; a lossy copy, docs/results.md).
"""

from selfexplain_jax.config import base_config, check_variant
from selfexplain_jax.recipes import scores_recipe, self_explainer_recipe, start_later

VARIANTS = ("self_explainer", "classifier")


def get_config(variant="self_explainer"):
    """The experiment of that name."""
    check_variant(__file__, variant, VARIANTS)
    config = self_explainer_recipe(base_config())
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.crop_area = (0.6, 1.0)
    config.data.flip = True
    config.model.widths = (48, 64, 96)
    config.model.stem_stride = 2
    # Colours tell these classes apart, unlike those of the synthetic set.
    config.model.local_contrast = False
    # Objects fill much of so small an image, 16 x 16 cells of it.
    config.model.edge_distances = (2, 1, 2, 1)
    config.model.initial_temperature, config.model.pooling_temperature = 1.0, 0.5
    config.model.temperature_steps = 1200
    config.train.batch_size = 64
    config.train.steps = 2000
    # The scores alone take a third of the time a step: affinity joins them at step 1,000, the passes at 1,500.
    start_later(config, 1200, but=("classification",))
    objective = config.objective
    objective.affinity.start, objective.affinity.weight = 1000, 5.0
    # What shapes the masks must not cost the class; what surrounds an object tells much of it.
    objective.classification.weight, objective.ranking.weight = 5.0, 2.0
    objective.background.weight, objective.evaluator.weight = 0.5, 0.5
    objective.area_target.weight = 0.1
    if variant == "classifier":
        config.method = "classifier"
        scores_recipe(config)
    return config
