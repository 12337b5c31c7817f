"""Every method side by side on the synthetic set: learned masks against post-hoc maps of a classifier.

Hardware: two CPU cores.
Time:     half an hour for 100 images with --config.comparison.leave_out="('extremal_perturbation',)" (33 minutes were
          measured with the Explainer's column), without it six hours more: its 800 steps take 222 s an image. Expected
          on one GPU with all methods: 5 minutes, as 271 s were measured on an H200.
Needs:    bash launch/local.sh                                                   (the Self-Explainer, runs/synthetic)
          bash launch/local.sh --config=configs/synthetic.py:classifier          (runs/synthetic_classifier)
Command:  python -m selfexplain_jax.main --mode=evaluate --config=configs/compare_synthetic.py \\
            --workdir=runs/compare_synthetic
Writes:   comparison.json, .md, .csv and .tex, pictures/comparison.png and .pdf, report.html. Numbers: docs/results.md.
Variants: single (one object), explainer (the same with a column for the masks of an Explainer of that classifier),
          multi (one to three objects), confounded (trained on backgrounds that go with the label, and compared on such
          as do not), sanity (which maps change when the model is redrawn layer by layer, or was trained on shuffled
          labels; needs the run of configs/synthetic.py:random_label_classifier too). multi and confounded need the runs
          of configs/synthetic.py of that name, and its _classifier; what is missing is named with the command that
          trains it.
"""

from selfexplain_jax.config import base_config, check_variant
from selfexplain_jax.recipes import comparison_recipe

VARIANTS = ("single", "explainer", "multi", "confounded", "sanity")


def get_config(variant="single"):
    """The comparison of that name."""
    check_variant(__file__, variant, VARIANTS)
    config = base_config()
    config.data.name = "synthetic"
    if variant == "multi":
        config.data.options = {"min_objects": 1, "max_objects": 3}
        config.comparison.classes_per_image = 3
    if variant == "confounded":
        config.data.options = {"confounding": 0.9}
    if variant in ("multi", "confounded"):
        own, plain = f"configs/synthetic.py:{variant}", f"configs/synthetic.py:{variant}_classifier"
    else:
        own, plain = "configs/synthetic.py", "configs/synthetic.py:classifier"
    comparison_recipe(config, own, plain, "configs/synthetic.py:explainer" if variant == "explainer" else "")
    if variant == "confounded":
        # The network of that run draws masks too, from labels that cannot tell object and background apart.
        config.comparison.methods.learned_of_classifier = {"model": "classifier", "method": "learned"}
    if variant == "sanity":
        shuffled = "random_label_classifier"
        config.comparison.model_configs[shuffled] = f"configs/synthetic.py:{shuffled}"
        config.comparison.models[shuffled] = f"runs/synthetic_{shuffled}"
        # The search takes minutes an image, and is done again for every layer; masks by lot nearly so.
        for name in ("extremal_perturbation", "rise"):
            del config.comparison.methods[name]
        for name in ("parts", "deletion_insertion", "average_drop", "road"):
            del config.comparison.metrics[name]
        # Maps of every image are taken some eighteen times: of few images, and of fewer passes where a method has many.
        config.comparison.methods.smooth_grad.options = {"samples": 16}
        config.comparison.methods.integrated_gradients.options.steps = 16
        config.comparison.sanity_checks.images = 30
        config.comparison.sanity_checks.random_labels = {"classifier": shuffled}
    return config
