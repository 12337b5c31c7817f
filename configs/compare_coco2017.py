"""Every method side by side on COCO 2017: the Self-Explainer's masks against post-hoc maps of a classifier.

The classes are those of configs/coco2017.py; the runs and the comparison must be given the same ones.

Hardware: one GPU; perturbation methods take minutes an image on two CPU cores. localisation: 38 minutes
          there for its 100 images, other trainings beside (docs/results.md, "The same on three classes of COCO"). The
          others were not run to their end: no number of them is promised.
Needs:    bash launch/local.sh --config=configs/coco2017.py                      (the Self-Explainer, runs/coco2017)
          bash launch/local.sh --config=configs/coco2017.py:classifier           (runs/coco2017_classifier)
Command:  python -m selfexplain_jax.main --mode=evaluate --config=configs/compare_coco2017.py \\
            --workdir=runs/compare_coco2017
Subset:   --config.data.options.classes="('person','cat','dog')" in all three commands.
Variants: comparison, subset (the classes and the runs of configs/coco2017_subset.py, runs/coco2017_subset and its
          _classifier), localisation (subset against masks and boxes alone, with what two CPU cores do: no masks by lot
          and no search, fewer passes for the other methods).
Writes:   comparison.json, .md, .csv and .tex, pictures/comparison.png and .pdf, report.html.
Data:     as in configs/coco2017.py; --config.data.data_dir=DIR, or $TFDS_DATA_DIR.
"""

import pathlib

from selfexplain_jax.comparison_recipes import comparison_recipe, localisation_recipe
from selfexplain_jax.config import check_variant, load_config

VARIANTS = ("comparison", "subset", "localisation")


def get_config(variant="comparison"):
    """The comparison, on the data of configs/coco2017.py."""
    check_variant(__file__, variant, VARIANTS)
    experiment = "configs/coco2017.py" if variant == "comparison" else "configs/coco2017_subset.py"
    config = load_config(str(pathlib.Path(__file__).with_name(pathlib.Path(experiment).name)))
    config.comparison.classes_per_image = 3
    comparison_recipe(config, experiment, f"{experiment}:classifier", photo_regions="mask")
    config.comparison.methods.cam = {"model": "classifier", "options": {"relu": True}}
    # Fong et al. 2019 search these on COCO, whose objects are smaller.
    config.comparison.methods.extremal_perturbation.options.areas = (0.018, 0.025, 0.05, 0.1)
    if variant == "localisation":
        localisation_recipe(config)
    return config
