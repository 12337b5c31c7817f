"""The Explainer (Stalder et al. 2022) of ResNet-50 on PASCAL VOC 2007, at the paper's setting.

Paper:    "What You See is What You Classify: Black Box Attributions", NeurIPS 2022, arXiv 2205.11266.
Method:   DeepLab's atrous head on a ResNet-50 with ImageNet weights draws the masks; the classifier is frozen.
Hardware: one GPU with 16 GB; an hour or two, an estimate: it was not run here.
Command:  python -m selfexplain_jax.main --config=configs/voc2007_resnet50.py --workdir=runs/voc2007_resnet50
Before:   python -m selfexplain_jax.main --config=configs/voc2007.py:classifier_resnet50 \\
            --workdir=runs/voc2007_classifier_resnet50
Data:     python -m selfexplain_jax.data.prepare --dataset=voc2007 --data_dir=DIR, then --config.data.data_dir=DIR.
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
    config.data.name = "voc2007"
    config.data.train_split, config.data.eval_split = "main_train", "main_test"
    published_explainer_recipe(
        config, variant, "resnet50", entropy=3.0, variation=1.0, bounds=0.8, target_area=0.01, non_target_area=0.3
    )
    config.train.learning_rate = 1e-4
    # The authors stop when the validation loss does not fall; this is some 50 epochs.
    config.train.steps = 8000
    return config
