"""Self-Explainer on your own photos: a folder per class, or an index file (see selfexplain_jax/data/folder.py).

Method:   as configs/synthetic.py, with a decoder on EfficientNet-Lite0 that starts from its ImageNet weights.
Hardware: one GPU; two CPU cores need patience: 4 s a full step beside another run, and minutes to compile it.
Command:  python -m selfexplain_jax.main --config=configs/folder.py --config.data.data_dir=photos --workdir=runs/photos
Variants: single (one class a photo), multi (any number, needs an index file).
Score:    none on a set of useful size. 60 photos of cats and dogs and 120 steps named five of six test photos right,
          with masks over all of the image: too few of both.
"""

from selfexplain_jax.config import base_config, check_variant
from selfexplain_jax.recipes import photo_recipe, self_explainer_recipe

VARIANTS = ("single", "multi")


def get_config(variant="single"):
    """The experiment of that name."""
    check_variant(__file__, variant, VARIANTS)
    config = photo_recipe(self_explainer_recipe(base_config()))
    config.data.name = "folder"
    # What may be said of the folder; the options are described in selfexplain_jax/data/folder.py.
    config.data.options = {"multilabel": variant == "multi", "classes": (), "masks": "", "mask_values": "classes"}
    config.data.options.skip_bad = False
    config.data.image_size = 128
    config.data.balance = 1.0
    if variant == "multi":
        config.passes.classes_per_image = 1
    return config
