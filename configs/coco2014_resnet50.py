"""The Explainer (Stalder et al. 2022) of ResNet-50 on COCO 2014, at the paper's setting.

Paper:    "What You See is What You Classify: Black Box Attributions", NeurIPS 2022, arXiv 2205.11266.
Method:   DeepLab's atrous head on a ResNet-50 with ImageNet weights draws the masks; the classifier is frozen.
Hardware: one GPU with 16 GB; a day, an estimate: it was not run here.
Command:  python -m selfexplain_jax.main --config=configs/coco2014_resnet50.py --workdir=runs/coco2014_resnet50
Before:   python -m selfexplain_jax.main --config=configs/coco2014.py:classifier_resnet50 \\
            --workdir=runs/coco2014_classifier_resnet50
Data:     python -m selfexplain_jax.data.prepare --dataset=coco2014 --data_dir=DIR, then --config.data.data_dir=DIR.
Variants: explainer, real_time_saliency (the loss of Dabkowski & Gal 2017, with which the paper compares).
Score:    not trained here; the paper has it in its tables alone.
"""

from selfexplain_jax.config import base_config, check_variant
from selfexplain_jax.recipes import published_explainer_recipe

VARIANTS = ("explainer", "real_time_saliency")


def get_config(variant="explainer"):
    """The experiment of that name."""
    check_variant(__file__, variant, VARIANTS)
    config = base_config()
    config.data.name = "coco2014"
    config.data.train_split, config.data.eval_split = "train", "val"
    config.data.options = {"classes": (), "empty": "drop"}
    published_explainer_recipe(
        config, variant, "resnet50", entropy=3.0, variation=0.05, bounds=0.1, target_area=0.01, non_target_area=0.03
    )
    config.train.learning_rate = 1e-5
    # The authors stop when the validation loss does not fall; this is 10 epochs.
    config.train.steps = 52_000
    return config
