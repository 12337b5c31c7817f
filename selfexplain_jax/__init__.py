"""selfexplain_jax: image classifiers that explain themselves, and the methods researchers compare them with."""

__version__ = "0.1.0"
