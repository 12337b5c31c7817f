"""Every method side by side on the synthetic set: learned masks against post-hoc maps of a classifier.

Hardware: two CPU cores.
Time:     half an hour for 100 images with --config.comparison.leave_out="('extremal_perturbation',)" (33 minutes were
          measured with the Explainer's column), without it six hours more: its 800 steps take 222 s an image. Expected
          on one GPU with all methods: 5 minutes, as 271 s were measured on an H200. multi: 25 minutes, confounded:
          21 minutes, likewise; classes: 13 minutes; vit: 9.
Needs:    bash launch/local.sh                                                   (the Self-Explainer, runs/synthetic)
          bash launch/local.sh --config=configs/synthetic.py:classifier          (runs/synthetic_classifier)
Command:  python -m selfexplain_jax.main --mode=evaluate --config=configs/compare_synthetic.py \\
            --workdir=runs/compare_synthetic
Writes:   comparison.json, .md, .csv and .tex, pictures/comparison.png and .pdf, report.html. Numbers: docs/results.md.
Variants: single      one object
          explainer   the same with a column for the masks of an Explainer of that classifier
          networks    and with one for those of real-time saliency (Dabkowski & Gal 2017)
          multi       one to three objects
          classes     the same images, and maps of all eight classes: class mIoU and class-specific table
          confounded  trained on backgrounds that go with the label, and compared on such as do not
          vit         a small vision transformer in the classifier's place: maps of its attention and its gradients
          sanity      which maps change when the model is redrawn layer by layer (of vit too), or was trained on
                      shuffled labels
          They need other runs of configs/synthetic.py; what is missing is named with the command that trains it.
"""

from selfexplain_jax.comparison_recipes import comparison_recipe, fewer_passes, without_lots_and_searches
from selfexplain_jax.config import base_config, check_variant

VARIANTS = ("single", "explainer", "networks", "multi", "classes", "confounded", "vit", "sanity")
EXPERIMENTS = {
    "explainer": ("", "classifier", "explainer"),
    "networks": ("", "classifier", "explainer", "real_time_saliency"),
    "multi": ("multi", "multi_classifier"),
    "classes": ("multi", "multi_classifier"),
    "confounded": ("confounded", "confounded_classifier"),
    "vit": ("", "vit_classifier"),
}
"""The variants of configs/synthetic.py that are compared: Self-Explainer, classifier, and its mask networks."""


def get_config(variant="single"):
    """The comparison of that name."""
    check_variant(__file__, variant, VARIANTS)
    config = base_config()
    config.data.name = "synthetic"
    if variant in ("multi", "classes"):
        config.data.options = {"min_objects": 1, "max_objects": 3}
        config.comparison.classes_per_image = 3 if variant == "multi" else 8
    if variant == "confounded":
        config.data.options = {"confounding": 0.9}
    trained = EXPERIMENTS.get(variant, ("", "classifier"))
    comparison_recipe(config, *(":".join(filter(None, ("configs/synthetic.py", name))) for name in trained))
    methods, metrics = config.comparison.methods, config.comparison.metrics
    if variant == "confounded":
        # The network of that run draws masks too, from labels that cannot tell object and background apart.
        methods.learned_of_classifier = {"model": "classifier", "method": "learned"}
    if variant in ("multi", "confounded", "classes", "vit", "sanity"):
        fewer_passes(config)
    if variant in ("classes", "vit", "sanity"):
        # Of an image eight maps are taken, or some eighteen: no search, which is minutes a map, and no masks by lot,
        # which are nearly as long.
        without_lots_and_searches(config)
    if variant == "classes":
        config.comparison.metrics = {"segmentation": {}, "class_map": {}, "class_specific": {}}
    if variant in ("vit", "sanity"):
        config.comparison.sanity_checks.images = 30
    if variant == "vit":
        # Its tokens are in no plane of an image that activation maps could be of, and ReLUs are in its stem alone.
        for name in ("grad_cam", "grad_cam_plus_plus", "score_cam", "guided_backpropagation"):
            del methods[name]
        for name in ("attention_rollout", "attention_relevance"):
            methods[name] = {"model": "classifier"}
    if variant == "sanity":
        for name in ("parts", "deletion_insertion", "average_drop", "road"):
            del metrics[name]
        shuffled = "random_label_classifier"
        config.comparison.model_configs[shuffled] = f"configs/synthetic.py:{shuffled}"
        config.comparison.models[shuffled] = f"runs/synthetic_{shuffled}"
        config.comparison.sanity_checks.random_labels = {"classifier": shuffled}
    return config
