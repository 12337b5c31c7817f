"""Self-Explainer on ImageNet (TFDS imagenet2012/5.1.0): 224 px, 1,000 classes, image labels.

Method:   decoder on a pretrained EfficientNet-Lite0; softmax over the classes, a background that favours none.
Hardware: one host with eight accelerators; days.
Command:  python -m selfexplain_jax.main --config=configs/imagenet.py --workdir=runs/imagenet
Data:     ImageNet as prepared by TFDS (tfds build imagenet2012), then --config.data.data_dir=DIR.
Variants: self_explainer, classifier (EfficientNet-Lite0 itself), vit_classifier (a small vision transformer, whose
          weights come from the Hugging Face hub).
Score:    not trained here, so none is promised.
"""

from selfexplain_jax.config import base_config, check_variant
from selfexplain_jax.recipes import classifier_recipe, photo_recipe, self_explainer_recipe

VARIANTS = ("self_explainer", "classifier", "vit_classifier")


def get_config(variant="self_explainer"):
    """The experiment of that name."""
    check_variant(__file__, variant, VARIANTS)
    config = photo_recipe(self_explainer_recipe(base_config()))
    config.data.name = "imagenet2012"
    # WordNet ids of the wanted classes, ("n02123045", ...); () = all thousand.
    config.data.options = {"classes": ()}
    config.data.eval_split = "validation"
    config.data.fit = "center"
    # Among a thousand classes, a sum of binary cross-entropies would drown the one that is there.
    config.model.link = "softmax"
    config.train.batch_size = 256
    config.train.learning_rate = 1e-3
    config.train.steps = 100_000
    config.train.warmup_steps = 2000
    config.train.checkpoint_every = 2000
    # A thousand full-size masks of an image do not fit beside those of many others.
    config.evaluation.batch_size = 16
    if variant == "classifier":
        classifier_recipe(config)
    if variant == "vit_classifier":
        classifier_recipe(config, "vit_small")
    return config
