"""Every method side by side on the synthetic set: the Self-Explainer's masks against post-hoc maps of a classifier.

Hardware: two CPU cores.
Needs:    bash launch/local.sh                                                   (the Self-Explainer, runs/synthetic)
          bash launch/local.sh --config=configs/synthetic.py:classifier          (runs/synthetic_classifier)
Command:  python -m selfexplain_jax.main --mode=evaluate --config=configs/compare_synthetic.py \\
            --workdir=runs/compare_synthetic
Writes:   comparison.json, comparison.md, comparison.csv, pictures/comparison.png. Measured numbers: docs/results.md.
Variants: single (one object), multi (one to three; needs the runs of configs/synthetic.py:multi and :multi_classifier).
"""

from selfexplain_jax.config import base_config
from selfexplain_jax.recipes import comparison_recipe
from selfexplain_jax.types import UserError

VARIANTS = ("single", "multi")


def get_config(variant="single"):
    """The comparison of that name."""
    if variant not in VARIANTS:
        raise UserError(f"configs/compare_synthetic.py has no variant {variant!r}. Choose one of {VARIANTS}.")
    config = base_config()
    config.data.name = "synthetic"
    if variant == "multi":
        config.data.options = {"min_objects": 1, "max_objects": 3}
        config.comparison.classes_per_image = 3
    suffix = "" if variant == "single" else "_multi"
    return comparison_recipe(config, f"runs/synthetic{suffix}", f"runs/synthetic{suffix}_classifier")
