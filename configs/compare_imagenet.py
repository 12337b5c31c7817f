"""Every post-hoc method side by side on ImageNet photos: what a network with its published weights looks at.

Hardware: two CPU cores for the default of 20 photos, in an expected hour; any number on a GPU.
Command:  python -m selfexplain_jax.main --mode=evaluate --config=configs/compare_imagenet.py \\
            --workdir=runs/compare_imagenet
Variants: comparison (EfficientNet-Lite0), vit (maps of the attention and the gradients of a small vision transformer,
          whose weights come from the Hugging Face hub; not run yet).
Sanity:   a second table compares the maps of eight photos before and after the network is redrawn layer by layer
          (Adebayo et al. 2018). Extremal Perturbations are left out: minutes a map.
Run:      without Score-CAM and RISE, on four photos of the training split and as many for the check, 9 minutes on two
          cores with other work beside. What the check says: docs/results.md, "Sanity checks"; four photos allow no
          table of methods, so no other number is kept. The default of 20 photos was not run.
Data:     ImageNet as prepared by TFDS, then --config.data.data_dir=DIR. It has no masks: the metrics are those of
          faithfulness.
"""

from selfexplain_jax.config import base_config, check_variant

VARIANTS = ("comparison", "vit")


def get_config(variant="comparison"):
    """The comparison."""
    check_variant(__file__, variant, VARIANTS)
    config = base_config()
    config.data.name, config.data.eval_split = "imagenet2012", "validation"
    config.data.options = {"classes": ()}
    config.data.image_size, config.data.fit = 224, "center"
    config.evaluation.batch_size, config.evaluation.max_examples = 4, 20
    config.comparison.models = {"efficientnet_lite0": "configs/imagenet.py:classifier"}
    config.comparison.methods = {
        "grad_cam": {},
        "grad_cam_plus_plus": {},
        "cam": {"options": {"relu": True}},
        # Channels in 40 clusters, so many passes in the place of 1,280.
        "score_cam": {"options": {"clusters": 40}},
        "gradient": {},
        "gradient_x_input": {},
        "guided_backpropagation": {},
        "smooth_grad": {"options": {"samples": 16}},
        "integrated_gradients": {"options": {"steps": 16, "channels": "abs_sum"}},
        # A sixteenth of the published number of masks, in pairs.
        "rise": {"options": {"num_masks": 500, "sampling": "antithetic"}},
        "centre": {"options": {"shape": "gaussian"}},
        "edges": {},
    }
    config.comparison.metrics = {"deletion_insertion": {"step_pixels": 3136}, "average_drop": {}, "road": {}}
    config.comparison.sanity_checks.images = 8
    config.comparison.sanity_checks.methods = (
        "grad_cam",
        "grad_cam_plus_plus",
        "gradient",
        "gradient_x_input",
        "guided_backpropagation",
        "edges",
    )
    if variant == "vit":
        comparison = config.comparison
        comparison.models = {"vit_small": "configs/imagenet.py:vit_classifier"}
        # Its tokens lie in no plane of an image that activation maps could be of, and it has no ReLU.
        attention = {"attention_rollout": {}, "attention_relevance": {}}
        without = ("grad_cam", "grad_cam_plus_plus", "cam", "score_cam", "guided_backpropagation")
        kept = {name: options for name, options in comparison.methods.items() if name not in without}
        comparison.methods = attention | kept
        comparison.sanity_checks.methods = (*attention, "gradient", "gradient_x_input", "edges")
    return config
