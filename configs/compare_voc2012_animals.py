"""Every method side by side on six animals of PASCAL VOC 2012: learned masks against post-hoc maps of a classifier.

Hardware: one GPU; perturbation methods take minutes an image on two CPU cores (see localisation).
Needs:    bash launch/local.sh --config=configs/voc2012_animals.py                (runs/voc2012_animals)
          bash launch/local.sh --config=configs/voc2012_animals.py:classifier     (runs/voc2012_animals_classifier)
Command:  python -m selfexplain_jax.main --mode=evaluate --config=configs/compare_voc2012_animals.py \\
            --workdir=runs/compare_voc2012_animals
Writes:   comparison.json, .md, .csv and .tex, pictures/comparison.png and .pdf, report.html.
Run:      localisation, for 100 of the 345 images, 40 minutes on two cores (docs/results.md, "The same on six
          animals"). comparison and explainer were not run, so no number of them is promised.
Data:     as in configs/voc2012_animals.py; --config.data.data_dir=DIR, or $TFDS_DATA_DIR.
Variants: comparison, explainer (the same with a column for the masks of the Explainer of that classifier; needs the run
          of configs/voc2012_animals.py:explainer too), localisation (against masks and boxes alone, on all images, with
          what two CPU cores do in an expected two hours and a quarter, 40 minutes with
          --config.evaluation.max_examples=100: no masks by lot and no search, fewer passes for the other methods).
"""

import pathlib

from selfexplain_jax.comparison_recipes import comparison_recipe, localisation_recipe
from selfexplain_jax.config import check_variant, load_config

VARIANTS = ("comparison", "explainer", "localisation")


def get_config(variant="comparison"):
    """The comparison, on the data of configs/voc2012_animals.py."""
    check_variant(__file__, variant, VARIANTS)
    config = load_config(str(pathlib.Path(__file__).with_name("voc2012_animals.py")))
    config.comparison.classes_per_image = 3
    experiment = "configs/voc2012_animals.py"
    explainers = [f"{experiment}:explainer"] if variant == "explainer" else []
    comparison_recipe(config, experiment, f"{experiment}:classifier", *explainers, photo_regions="boxes")
    config.comparison.methods.cam = {"model": "classifier", "options": {"relu": True}}
    if variant == "localisation":
        config.evaluation.max_examples = 0
        localisation_recipe(config)
    return config
