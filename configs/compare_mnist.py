"""Every method side by side on MNIST on canvas: the Self-Explainer's masks against post-hoc maps of a classifier.

Hardware: two CPU cores.
Needs:    bash launch/local.sh --config=configs/mnist.py:canvas                  (the Self-Explainer, runs/mnist_canvas)
          bash launch/local.sh --config=configs/mnist.py:canvas_classifier       (runs/mnist_canvas_classifier)
Command:  python -m selfexplain_jax.main --mode=evaluate --config=configs/compare_mnist.py \\
            --workdir=runs/compare_mnist
Writes:   comparison.json, .md, .csv and .tex, pictures/comparison.png and .pdf, report.html. Numbers: docs/results.md.
Time:     half an hour with --config.comparison.leave_out="('extremal_perturbation',)", without it hours.
Data:     as in configs/mnist.py; --config.data.data_dir=DIR, or $TFDS_DATA_DIR.
"""

import pathlib

from selfexplain_jax.comparison_recipes import comparison_recipe
from selfexplain_jax.config import check_variant, load_config

VARIANTS = ("comparison",)


def get_config(variant="comparison"):
    """The comparison, on the data of configs/mnist.py:canvas."""
    check_variant(__file__, variant, VARIANTS)
    config = load_config(f"{pathlib.Path(__file__).with_name('mnist.py')}:canvas")
    return comparison_recipe(config, "configs/mnist.py:canvas", "configs/mnist.py:canvas_classifier")
