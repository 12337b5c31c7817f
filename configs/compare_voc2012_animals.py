"""Every method side by side on six animals of PASCAL VOC 2012: learned masks against post-hoc maps of a classifier.

Hardware: one GPU; perturbation methods take minutes an image on two CPU cores. Not run here.
Needs:    bash launch/local.sh --config=configs/voc2012_animals.py                (runs/voc2012_animals)
          bash launch/local.sh --config=configs/voc2012_animals.py:classifier     (runs/voc2012_animals_classifier)
Command:  python -m selfexplain_jax.main --mode=evaluate --config=configs/compare_voc2012_animals.py \\
            --workdir=runs/compare_voc2012_animals
Writes:   comparison.json, comparison.md, comparison.csv, pictures/comparison.png.
Data:     as in configs/voc2012_animals.py; --config.data.data_dir=DIR, or $TFDS_DATA_DIR.
Variants: comparison, explainer (the same with a column for the masks of the Explainer of that classifier; needs the run
          of configs/voc2012_animals.py:explainer too).
"""

import pathlib

from selfexplain_jax.config import check_variant, load_config
from selfexplain_jax.recipes import comparison_recipe

VARIANTS = ("comparison", "explainer")


def get_config(variant="comparison"):
    """The comparison, on the data of configs/voc2012_animals.py."""
    check_variant(__file__, variant, VARIANTS)
    config = load_config(str(pathlib.Path(__file__).with_name("voc2012_animals.py")))
    config.comparison.classes_per_image = 3
    experiment = "configs/voc2012_animals.py"
    explainer = f"{experiment}:explainer" if variant == "explainer" else ""
    return comparison_recipe(config, experiment, f"{experiment}:classifier", explainer, photo_regions="boxes")
