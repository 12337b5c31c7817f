"""The Self-Explainer as its first implementation trained it: three passes, gated terms, Adam at 1e-4, batches of eight.

Method:   what a step of it costs and how far it comes, beside ours; benchmark_predecessor.py has the other side, the
          same in eager PyTorch. No recipe to start from: configs/synthetic.py and configs/voc2007.py are.
Hardware: two CPU cores (unet, plain), one GPU (deeplab).
Command:  python -m selfexplain_jax.main --mode=benchmark --what=train --config=configs/predecessor.py:deeplab \\
            --workdir=runs/predecessor_deeplab --peers=.venv-parity
Data:     the synthetic set; VOC 2007 for deeplab, which the benchmark does not read.
Variants: unet (the network of configs/synthetic.py), plain (the same without what that adds to a U-Net: local contrast,
          blur and edges of the maps), deeplab (DeepLab v3 on ResNet-50 at 224 px, 20 classes, several a photo).
"""

from selfexplain_jax.config import base_config, check_variant
from selfexplain_jax.recipes import deeplab_network, predecessor_recipe, self_explainer_recipe

VARIANTS = ("unet", "plain", "deeplab")


def get_config(variant="unet"):
    """The experiment of that name."""
    check_variant(__file__, variant, VARIANTS)
    # Its network; the rest is replaced.
    config = self_explainer_recipe(base_config())
    if variant == "plain":
        config.model.local_contrast = False
        config.model.map_blur = 0.0
        config.model.edge_distances = ()
    if variant != "deeplab":
        config.model.link = "softmax"
        predecessor_recipe(config, temperature=2.0, upper=0.8, non_target_area=0.3)
        config.train.steps = 20000
        return config
    config.data.name = "voc2007"
    config.data.train_split, config.data.eval_split = "main_train", "main_test"
    config.data.num_threads = 2
    deeplab_network(config)
    # Losses and masks at the stride of the last features, where it resizes the maps of all classes to the image.
    config.model.mask_stride = 8
    config.model.map_blur = 0.0
    config.model.edge_distances = ()
    config.passes.classes_per_image = 1
    predecessor_recipe(config, temperature=1.0, upper=0.3, non_target_area=0.6)
    config.train.steps = 8000
    return config
