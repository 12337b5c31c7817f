"""The Explainer (Stalder et al. 2022) of VGG-16 on PASCAL VOC 2007, at the paper's setting.

Paper:    "What You See is What You Classify: Black Box Attributions", NeurIPS 2022, arXiv 2205.11266.
Method:   DeepLab's atrous head on a ResNet-50 with ImageNet weights draws the masks; the classifier is frozen.
Hardware: one GPU with 16 GB; an hour or two, an estimate: it was not run here.
Command:  python -m selfexplain_jax.main --config=configs/voc2007_vgg16.py --workdir=runs/voc2007_vgg16
Before:   python -m selfexplain_jax.main --config=configs/voc2007.py:classifier_vgg16 \\
            --workdir=runs/voc2007_classifier_vgg16
Data:     python -m selfexplain_jax.data.prepare --dataset=voc2007 --data_dir=DIR, then --config.data.data_dir=DIR.
Variants: explainer, real_time_saliency (the loss of Dabkowski & Gal 2017, with which the paper compares).
Score:    published (authors' stored notebook): class probability 53.5 % on the mask of the class and 5.8 % on those of
          others, over five classes of the test set, 58.2 % unmasked; not trained here.
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
        config, variant, "vgg16", entropy=1.0, variation=1.0, bounds=1.0, target_area=0.1, non_target_area=0.3
    )
    config.train.learning_rate = 1e-5
    # The authors stop when the validation loss does not fall; this is some 50 epochs.
    config.train.steps = 8000
    return config
