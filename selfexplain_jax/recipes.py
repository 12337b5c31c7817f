"""What experiments have in common: each recipe sets fields of a config in place and returns it. No jax here either."""

from __future__ import annotations

from collections.abc import Collection

import ml_collections


def self_explainer_recipe(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Sets the training recipe that docs/results.md arrived at, in place, and returns the config.

    Experiments start from it and change what their data ask for.
    """
    # Classification alone until this step; then all passes, their weights growing over `ramp` steps.
    start, ramp = 300, 200
    # Drawing takes many short calls, and Python's lock in between: a second thread was measured to add nothing.
    config.data.num_threads = 1
    config.train.steps = 2400
    config.train.batch_size = 32
    config.train.learning_rate = 4e-3
    # From a pool that finds the class fast to one near the mean (0), where a few strong cells cannot carry it.
    config.model.initial_temperature = 0.6
    config.model.pooling_temperature = 0.25
    config.model.temperature_steps = 1600
    # Neighbouring cells share evidence: without it the maps show the grid of the last layer.
    config.model.map_blur = 0.7
    # Masks end where the image has an edge.
    config.model.edge_distances = (4, 2, 1)
    config.passes.infills = ("zero", "color_noise", "blur")
    config.passes.evaluator_masks = ("swapped", "complement", "blobs")
    config.objective = {
        # Tells classes apart from the first step on; BCE alone would sit on a plateau for a thousand steps.
        "ranking": {"weight": 1.0},
        # Ties a logit of 0, a mask of one half, to "present".
        "classification": {"weight": 1.0, "start": start, "ramp": ramp},
        "object": {"weight": 2.0, "start": start, "ramp": ramp},
        "background": {"weight": 1.5, "start": start, "ramp": ramp},
        "evaluator": {"weight": 2.0, "start": start, "ramp": ramp},
        "area_target": {"weight": 0.15, "start": start},
        "area_non_target": {"weight": 0.2, "start": start},
        "smoothness": {"weight": 0.03, "edge": 2.0, "start": start},
        # Cells of one colour on one side of the outline, once the passes have said which side is the object.
        "affinity": {"weight": 10.0, "start": 600, "ramp": 600},
    }
    return config


def start_later(config: ml_collections.ConfigDict, steps: int, but: Collection[str] = ()) -> None:
    """Lets all terms of the objective but "ranking" and those in `but` start so many steps later, in place."""
    for name in set(config.objective) - {"ranking", *but}:
        config.objective[name].start = config.objective[name].get("start", 0) + steps


def explainer_recipe(
    config: ml_collections.ConfigDict,
    *,
    entropy: float,
    variation: float,
    bounds: float,
    target_area: float,
    non_target_area: float,
) -> ml_collections.ConfigDict:
    """Sets method, objective and optimizer of the Explainer (Stalder et al. 2022, section 3), in place.

    Args:
      config: `config.model.mask_stride` is read: call this behind the choice of the network.
      entropy: of the classifier's answer to the background, the paper's lambda_E.
      variation: total variation of target and non-target mask, lambda_TV, as a weight for masks of the image's size.
      bounds: area bounds of the present classes' masks, 5 to 30 % of the image, lambda_B.
      target_area, non_target_area: mean of target and non-target mask, lambda_m and lambda_n.

    Returns:
      The config.
    """
    config.method = "explainer"
    config.passes.infills = ("zero",)
    config.objective = {
        "object": {"weight": 1.0},
        "background": {"weight": entropy, "form": "mean_entropy"},
        # Over cells of s pixels a mask varies s times as much per step as over pixels.
        "smoothness": {"weight": variation / config.model.mask_stride},
        # Of every present class; twenty are all that VOC has.
        "area_bounds": {"weight": bounds, "lower": 0.05, "upper": 0.3, "max_classes": 20},
        "area_target": {"weight": target_area},
        "area_non_target": {"weight": non_target_area},
    }
    _as_published(config.train)
    return config


def real_time_saliency_recipe(config: ml_collections.ConfigDict, area: float = 1.0) -> ml_collections.ConfigDict:
    """Sets method, objective and optimizer of real-time saliency (Dabkowski & Gal 2017), in place.

    The masks of all classes come from one pass of the network, in the place of the paper's class selector.

    Args:
      config: `config.model.mask_stride` is read: call this behind the choice of the network.
      area: weight of the mask's mean, lambda_2. The paper has .001 for its ImageNet network; 1 is what Stalder et al.
        2022 arrived at when they trained this loss on VOC and COCO.

    Returns:
      The config.
    """
    config.method = "explainer"
    # The alternative image: a blur, or one random colour with noise.
    config.passes.infills = ("blur", "color_noise")
    config.objective = {
        "object": {"weight": 1.0, "target": "present"},
        "background": {"weight": 5.0, "form": "probability", "power": 0.3},
        # Squares of differences: s^2 times as large over cells of s pixels.
        "squared_smoothness": {"weight": 10.0 / config.model.mask_stride**2},
        "area_target": {"weight": area},
    }
    _as_published(config.train)
    return config


def predecessor_recipe(
    config: ml_collections.ConfigDict, *, temperature: float, upper: float, non_target_area: float
) -> ml_collections.ConfigDict:
    """Sets objective and optimizer of the Self-Explainer's first implementation, in place.

    Three passes, no evaluator; gates hold the terms back until the class is known. What its description leaves open,
    the weights of the smoothness and of the area's bounds, is that of `explainer_recipe` for VOC and ResNet-50, and the
    smoothness opens with the area.

    Args:
      config: `config.model.mask_stride` is read: call this behind the choice of the network.
      temperature: of the pool, 2 on synthetic images and 1 on photographs.
      upper: most of the image that a present class's mask may cover, .8 and .3; the least is .04.
      non_target_area: weight of the other classes' masks, .3 and .6.

    Returns:
      The config.
    """
    late = {"gate_steepness": 2.0, "gate_offset": 0.2}
    latest = {"gate_steepness": 5.0, "gate_offset": 0.1}
    config.model.pooling_temperature = temperature
    config.model.temperature_steps = 0
    config.passes.infills = ("zero",)
    config.passes.weights = "stop_gradient"
    config.objective = {
        "classification": {"weight": 1.0},
        "object": {"weight": 0.5, **late},
        # Of a softmax, whatever the link.
        "background": {"weight": 1.0, "form": "entropy", **late},
        "area_bounds": {"weight": 0.8, "lower": 0.04, "upper": upper, **latest},
        "area_target": {"weight": 0.1, **latest},
        "area_non_target": {"weight": non_target_area, **latest},
        "smoothness": {"weight": 1.0 / config.model.mask_stride, **latest},
    }
    _as_published(config.train)
    config.train.learning_rate, config.train.batch_size = 1e-4, 8
    return config


def _as_published(train: ml_collections.ConfigDict) -> None:
    """Adam at a constant rate, unclipped, batch 16."""
    train.optimizer = "adam"
    train.schedule = "constant"
    train.warmup_steps = 0
    train.clip_norm = 0.0
    train.batch_size = 16


def photo_recipe(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Sets network (a pretrained EfficientNet-Lite0), crops and schedule for photographs, in place; returns the config.

    Call it behind `self_explainer_recipe`, whose dates it brings forward.
    """
    config.data.image_size = 224
    # Reading photos leaves Python's lock alone most of the time.
    config.data.num_threads = 2
    config.data.crop_area = (0.4, 1.0)
    config.data.flip = True
    config.data.color_jitter = (0.2, 0.2, 0.2, 0.02)
    config.model.name = "encoder_unet"
    config.model.encoder = "efficientnet_lite0"
    config.model.pretrained = "imagenet"
    # A batch of 16 is too few for batch statistics of its own.
    config.model.frozen_norm = True
    config.model.mask_stride = 4
    config.model.coarse_maps = True
    # Objects fill more or less of a photo: a pool nearer the mean, which every cell counts in, asks for half of it.
    config.model.pooling_temperature = 1.0
    config.model.temperature_steps = 0
    config.train.backbone_rate = 0.1
    config.train.batch_size = 16
    config.train.learning_rate = 2e-3
    config.train.steps = 600
    config.train.warmup_steps = 20
    config.train.checkpoint_every = 100
    # A pretrained encoder knows the classes after a few steps: everything comes early.
    for name in ("classification", "object", "background", "evaluator", "area_target", "area_non_target", "smoothness"):
        config.objective[name].start = 50
    for name in ("classification", "object", "background", "evaluator"):
        config.objective[name].ramp = 50
    config.objective.affinity.start, config.objective.affinity.ramp = 100, 100
    return config


def frozen_encoder_recipe(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Sets a decoder over a frozen encoder for a few hundred photographs with several classes, in place; returns it.

    Call it behind `photo_recipe`. The recipe that the six animals of VOC 2012 arrived at (docs/results.md).
    """
    # Small images cost most: frozen features tell the six animals apart at an mAP of .82 at 128 px and .92 at 320.
    config.data.image_size = 320
    config.model.output_stride = 16
    config.model.decoder_width = 32
    # Far enough to fill an animal of one colour from its head. Rounds behind a trained network's first one gave .012,
    # .007 and .004 of mean IoU in turn.
    config.model.edge_distances = (8, 4, 2, 1) * 3
    config.model.pooling_temperature = 0.25
    # The coarse maps tell the classes apart from the first step on: there is no plateau to be helped over.
    objective = config.objective
    del objective["ranking"]
    # Against the sum of all that shapes the masks, else the classes are forgotten for it.
    objective.classification = {"weight": 3.0}
    for name in ("area_target", "area_non_target", "affinity", "smoothness"):
        objective[name].start, objective[name].ramp = 60, 60
    objective.area_target.weight, objective.affinity.weight = 0.05, 3.0
    objective.self_training = {"weight": 1.0, "start": 150, "ramp": 50}
    # The last passes take most of the time and change little: a frozen encoder has little to learn from them.
    for name in ("object", "background", "evaluator"):
        objective[name].start, objective[name].ramp = 380, 20
    objective.object.weight, objective.background.weight = 1.0, 0.25
    # A mask that hides the animal asks for doubt of a class that is not to be seen, which costs what is.
    objective.evaluator.weight = 0.1
    config.train.steps = 600
    # Frozen, the encoder takes no part in a code between masks and reader, and image passes need no gradient of it.
    config.train.backbone_rate = 0.0
    config.train.learning_rate = 4e-3
    config.passes.image_size = 192
    # One present class at a time in the object pass, so that each class has a mask of its own.
    config.passes.classes_per_image = 1
    config.evaluation.batch_size, config.evaluation.pictures = 50, 12
    # Chosen by the masks of 120 training images, which no training sees, after one training of the animals.
    config.evaluation.refine_rounds, config.evaluation.refine_mirrored = 8, True
    config.evaluation.refine_threshold = 0.2
    return config


def trained_encoder(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Takes back, in place, what `frozen_encoder_recipe` sets for a frozen encoder; returns the config."""
    config.train.backbone_rate, config.train.learning_rate, config.train.steps = 0.1, 2e-3, 420
    config.model.edge_distances = (8, 4, 2, 1)
    config.passes.image_size = 0
    return config


def classifier_recipe(config: ml_collections.ConfigDict, network: str = "") -> ml_collections.ConfigDict:
    """Turns an experiment of photographs into its plain classifier, in place; returns the config.

    Args:
      config: the experiment.
      network: a name in `models.backbones.BACKBONES`; "" is the encoder of the experiment.
    """
    config.method = "classifier"
    config.model.name = network or config.model.encoder
    config.objective = {"classification": {"weight": 1.0}}
    return config


def published_classifier_recipe(config: ml_collections.ConfigDict, network: str) -> ml_collections.ConfigDict:
    """Turns an experiment of photographs into a classifier as Stalder et al. 2022 explain it, in place; returns it.

    ImageNet weights, trained further in all layers on photos squeezed to the square, without augmentation.

    Args:
      config: the experiment.
      network: "vgg16" or "resnet50".
    """
    config.data.crop_area = ()
    config.data.color_jitter = (0.0, 0.0, 0.0, 0.0)
    config.data.flip = False
    _imagenet_colours(config.data)
    classifier_recipe(config, network)
    _as_published(config.train)
    config.train.learning_rate, config.train.backbone_rate = 1e-5, 1.0
    return config


def published_explainer_recipe(
    config: ml_collections.ConfigDict, variant: str, network: str, **weights: float
) -> ml_collections.ConfigDict:
    """Sets network, loss and frozen classifier of a setting of Stalder et al. 2022, in place; returns the config.

    DeepLab's atrous head on a ResNet-50 draws the masks. The classifier is that of `published_classifier_recipe`.

    Args:
      config: `config.data.name` is read.
      variant: "explainer", or "real_time_saliency".
      network: what is explained, "vgg16" or "resnet50".
      **weights: of the terms, see `explainer_recipe`.
    """
    data = config.data.name
    config.explainer.classifier = f"runs/{data}_classifier_{network}"
    config.explainer.classifier_config = f"configs/{data}.py:classifier_{network}"
    deeplab_network(config)
    # Maps of 28 x 28 cells, resized to half the image's side, where the paper has the whole.
    config.model.mask_stride = 2
    config.evaluation.batch_size = 50
    return explainer_recipe(config, **weights) if variant == "explainer" else real_time_saliency_recipe(config)


def deeplab_network(config: ml_collections.ConfigDict) -> None:
    """Sets, in place, DeepLab's atrous head on a pretrained ResNet-50, for photos of 224 px."""
    config.data.image_size = 224
    _imagenet_colours(config.data)
    config.model.name, config.model.encoder, config.model.decoder = "encoder_unet", "resnet50", "aspp"
    config.model.pretrained = "imagenet"
    config.model.decoder_width, config.model.output_stride = 256, 8


def _imagenet_colours(data: ml_collections.ConfigDict) -> None:
    """Mean and deviation of ImageNet's colours, so that 0 is the mean colour for classifier and mask network alike."""
    data.mean, data.std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def scores_recipe(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Leaves the terms of the image's scores alone, in place; returns the config."""
    config.objective = {name: config.objective[name] for name in ("ranking", "classification")}
    return config
