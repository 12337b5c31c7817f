"""Every method side by side on CIFAR-10: the Self-Explainer's masks against post-hoc maps of a classifier.

Hardware: two CPU cores: 13 minutes for its 100 images, another comparison beside, with
          --config.comparison.leave_out="('extremal_perturbation',)".
Needs:    bash launch/local.sh --config=configs/cifar10.py                       (the Self-Explainer, runs/cifar10)
          bash launch/local.sh --config=configs/cifar10.py:classifier            (runs/cifar10_classifier)
Command:  python -m selfexplain_jax.main --mode=evaluate --config=configs/compare_cifar10.py \\
            --workdir=runs/compare_cifar10
Writes:   comparison.json, .md, .csv and .tex, pictures/comparison.png and .pdf, report.html. Numbers: docs/results.md,
          "The same on CIFAR-10".
Data:     as in configs/cifar10.py; --config.data.data_dir=DIR, or $TFDS_DATA_DIR. It has no masks: the metrics are
          those that ask the network.
"""

import pathlib

from selfexplain_jax.comparison_recipes import comparison_recipe
from selfexplain_jax.config import check_variant, load_config

VARIANTS = ("comparison",)


def get_config(variant="comparison"):
    """The comparison, on the data of configs/cifar10.py."""
    check_variant(__file__, variant, VARIANTS)
    config = load_config(str(pathlib.Path(__file__).with_name("cifar10.py")))
    return comparison_recipe(config, "configs/cifar10.py", "configs/cifar10.py:classifier", masks=False)
