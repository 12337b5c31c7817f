"""What comparisons of methods have in common: recipes like those of `recipes.py`. No jax here either."""

from __future__ import annotations

import ml_collections

from selfexplain_jax.config import default_workdir


def comparison_recipe(
    config: ml_collections.ConfigDict,
    own: str,
    plain: str,
    *mask_networks: str,
    masks: bool = True,
    photo_regions: str = "",
) -> ml_collections.ConfigDict:
    """Sets a comparison of learned masks with the maps of a plain classifier, in place; returns the config.

    Args:
      config: `config.data` says on what.
      own, plain: the experiments that make the Self-Explainer and the classifier, "configs/NAME.py:VARIANT"; their runs
        are where training puts them.
      mask_networks: those of Explainers of that classifier, whose masks get a column each, by the name of the variant.
      masks: whether the data set has annotated masks.
      photo_regions: where it has boxes too, what the pointing game at the photos' own sizes aims at: "boxes" or "mask".
    """
    size = config.data.image_size
    comparison = config.comparison
    comparison.model_configs = {"self_explainer": own, "classifier": plain}
    others = {spec.partition(":")[2]: spec for spec in mask_networks}
    comparison.model_configs.update(others)
    comparison.models = {name: default_workdir(spec) for name, spec in comparison.model_configs.items()}
    post_hoc = {
        "grad_cam": {},
        "grad_cam_plus_plus": {},
        # Chunks are what memory holds at once, and change no map: ten times these suit a GPU.
        "score_cam": {"chunk_size": 32},
        "gradient": {},
        "gradient_x_input": {},
        "smooth_grad": {"chunk_size": 8},
        # The size of a pixel's part, whatever its sign: a signed map would put nothing at all in the middle of 0 and 1.
        "integrated_gradients": {"channels": "abs_sum", "chunk_size": 8},
        "guided_backpropagation": {},
        "rise": {"num_masks": 2000, "sampling": "antithetic", "chunk_size": 32},
        # Published for 224 px; lengths scale with the image. The published 800 steps are minutes an image on two cores.
        "extremal_perturbation": {
            "chunk_size": 8,
            "steps": 800,
            "grid_step": max(round(7 * size / 224), 1),
            "sigma": 21.0 * size / 224,
            "max_blur": 20.0 * size / 224,
        },
    }
    annotation = ("ground_truth",) if masks else ()
    comparison.methods = {"learned": {"model": "self_explainer"}}
    for name in others:
        comparison.methods[f"learned_of_{name}"] = {"model": name, "method": "learned"}
    # The same network by another method, and with the true masks: what its insertion and drop are to be held against.
    for name in ("grad_cam", *annotation):
        comparison.methods[f"{name}_of_self_explainer"] = {"model": "self_explainer", "method": name}
    for name, options in post_hoc.items():
        comparison.methods[name] = {"model": "classifier", "options": options}
    for name in (*annotation, "centre", "edges", "constant"):
        comparison.methods[name] = {"model": "classifier"}
    for name, value in (("all_zero", 0.0), ("all_one", 1.0)):
        comparison.methods[name] = {"model": "classifier", "method": "constant", "options": {"value": value}}
    against_masks = ("segmentation", "pointing_game", "pixel_precision") if masks else ()
    for name in (*against_masks, "parts", "swap", "deletion_insertion", "average_drop", "road"):
        comparison.metrics[name] = {}
    if photo_regions:
        for name in ("box_accuracy", "pointing_game_boxes"):
            comparison.metrics[name] = {}
        comparison.metrics.pointing_game_photo = {"regions": photo_regions}
    # Maps by perturbation take a second and more an image here.
    config.evaluation.batch_size, config.evaluation.max_examples = 10, 100
    return config


def localisation_recipe(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Keeps of a comparison of photos what two cores do, in place; returns the config.

    That is the metrics against masks and boxes, and every method but masks by lot and searches, with fewer passes.
    """
    comparison = config.comparison
    for name in ("parts", "swap", "deletion_insertion", "average_drop", "road"):
        del comparison.metrics[name]
    # Channels in 40 clusters, so many passes in the place of 1,280.
    comparison.methods.score_cam.options = {"clusters": 40}
    return without_lots_and_searches(fewer_passes(config))


def fewer_passes(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Gives SmoothGrad and Integrated Gradients 16 passes a map, in place; returns the config."""
    config.comparison.methods.smooth_grad.options = {"samples": 16}
    config.comparison.methods.integrated_gradients.options.steps = 16
    return config


def without_lots_and_searches(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Leaves out RISE and Extremal Perturbations, in place; returns the config."""
    for name in ("rise", "extremal_perturbation"):
        del config.comparison.methods[name]
    return config
