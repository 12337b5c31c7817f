"""Every method side by side on the synthetic set: the Self-Explainer's masks against post-hoc maps of a classifier.

Hardware: two CPU cores.
Needs:    bash launch/local.sh                                                   (the Self-Explainer, runs/synthetic)
          bash launch/local.sh --config=configs/synthetic.py:classifier          (runs/synthetic_classifier)
Command:  python -m selfexplain_jax.main --config=configs/compare_synthetic.py --mode=evaluate
Writes:   comparison.json, comparison.md, comparison.csv, pictures/comparison.png. Measured numbers: docs/results.md.
Variants: single (one object), multi (one to three; needs the runs of configs/synthetic.py:multi and :multi_classifier).
"""

from selfexplain_jax.config import base_config
from selfexplain_jax.types import UserError

VARIANTS = ("single", "multi")


def get_config(variant="single"):
    """The comparison of that name."""
    if variant not in VARIANTS:
        raise UserError(f"configs/compare_synthetic.py has no variant {variant!r}. Choose one of {VARIANTS}.")
    config = base_config()
    config.data.name = "synthetic"
    suffix = "" if variant == "single" else "_multi"
    if variant == "multi":
        config.data.options = {"min_objects": 1, "max_objects": 3}
    config.evaluation.batch_size = 25
    # Perturbation methods take seconds an image: an eighth of the test images.
    config.evaluation.max_examples = 250
    comparison = config.comparison
    comparison.classes_per_image = 1 if variant == "single" else 3
    comparison.models = {
        "self_explainer": f"runs/synthetic{suffix}",
        "classifier": f"runs/synthetic{suffix}_classifier",
    }
    post_hoc = {
        "grad_cam": {},
        "grad_cam_plus_plus": {},
        "score_cam": {},
        "gradient": {},
        "integrated_gradients": {},
        "smooth_grad": {},
        "rise": {"num_masks": 2000},
        # The published schedule and ladder; its smoothing is meant for 224 px and is scaled to the image's size.
        "extremal_perturbation": {},
    }
    comparison.methods = {"learned": {"model": "self_explainer"}} | {
        name: {"model": "classifier", "options": options} for name, options in post_hoc.items()
    }
    comparison.methods |= {name: {"model": "classifier"} for name in ("centre", "edges", "constant", "ground_truth")}
    comparison.metrics = {
        "segmentation": {},
        "pointing_game": {},
        "pixel_precision": {},
        "deletion_insertion": {},
        "average_drop": {},
        "road": {},
    }
    return config
