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

from selfexplain_jax.config import base_config
from selfexplain_jax.recipes import explainer_recipe, real_time_saliency_recipe
from selfexplain_jax.types import UserError

VARIANTS = ("explainer", "real_time_saliency")


def get_config(variant="explainer"):
    """The experiment of that name."""
    if variant not in VARIANTS:
        raise UserError(f"configs/voc2007_vgg16.py has no variant {variant!r}. Choose one of {VARIANTS}.")
    config = base_config()
    config.explainer.classifier = "runs/voc2007_classifier_vgg16"
    config.explainer.classifier_config = "configs/voc2007.py:classifier_vgg16"
    config.data.name = "voc2007"
    config.data.train_split, config.data.eval_split = "main_train", "main_test"
    config.data.image_size = 224
    # Of ImageNet's colours, so that 0 is the mean colour for both networks.
    config.data.mean, config.data.std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    config.model.name, config.model.encoder, config.model.decoder = "encoder_unet", "resnet50", "aspp"
    config.model.pretrained = "imagenet"
    config.model.decoder_width, config.model.output_stride = 256, 8
    # Maps of 28 x 28 cells, resized to half the image's side, where the paper has the whole.
    config.model.mask_stride = 2
    if variant == "explainer":
        explainer_recipe(
            config,
            entropy=1.0,
            variation=1.0,
            bounds=1.0,
            target_area=0.1,
            non_target_area=0.3,
        )
    else:
        real_time_saliency_recipe(config)
    config.train.learning_rate = 1e-5
    # The authors stop when the validation loss does not fall; this is some 50 epochs.
    config.train.steps = 8000
    config.evaluation.batch_size = 50
    return config
