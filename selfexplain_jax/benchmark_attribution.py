"""How fast attribution methods and their metrics are, beside published implementations on the same network and photos.

python -m selfexplain_jax.main --mode=benchmark --what=attribution --config=configs/imagenet.py:classifier \\
  --images=PHOTOS --peers=PYTHON --json=attribution.json
python -m selfexplain_jax.main --mode=benchmark --what=metrics ...

Each row is one call; both sides make it in turn, and medians count. Rows whose published settings take hours are
measured at less, the same on both sides, and the row says so (config.benchmark). Without an environment of the peers
(`benchmark_peers.find_interpreter`) ours alone are measured, and the row says why.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from selfexplain_jax import attribution, costs
from selfexplain_jax import benchmark_peers as peers_lib
from selfexplain_jax.attribution.extremal_perturbation import AREAS
from selfexplain_jax.benchmark_step import matrix_product_rates
from selfexplain_jax.data import photos as photo_files
from selfexplain_jax.data.pipeline import evaluation_batches, normalise
from selfexplain_jax.metrics import faithfulness
from selfexplain_jax.models import build_model
from selfexplain_jax.models.pretrained import foreign_weights
from selfexplain_jax.training import loop
from selfexplain_jax.training.mesh import make_mesh, usable_cores
from selfexplain_jax.training.state import apply_masks, bind, make_predictor, network_predictor
from selfexplain_jax.types import Dataset, DatasetInfo, Predictor, UserError

PEERS_NETWORK = "efficientnet_lite0"
PUBLISHED_MASKS, PUBLISHED_STEPS = 8000, 800
"""Of RISE and of Extremal Perturbations."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured on.

    classifier: with features and a head. self_explainer: over the same encoder, for as many classes as are explained.
    images: float32 [N, H, W, 3], normalised. class_ids: int32 [N, k], the likeliest first. saliency: float32 [N, H, W].
    photos: says which. weights, strides: of the network as the peers take it; empty where they do not know it.
    """

    classifier: Predictor
    self_explainer: Predictor
    images: np.ndarray
    class_ids: np.ndarray
    saliency: np.ndarray
    photos: str
    weights: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    strides: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
    """One call, and what the peers do for the same: their `task` with these settings.

    maps: maps made, or measured, by the call. note: in what way it is less than published; "" where it is not.
    """

    name: str
    package: str
    task: str
    settings: Mapping[str, Any]
    maps: int
    function: Callable
    arguments: tuple
    note: str = ""


# ---- What is measured on ---------------------------------------------------------------------------------------------


def build_subject(config: ml_collections.ConfigDict, images: Sequence[str] = ()) -> Subject:
    """The classifier that a config names, with its pretrained weights, and photos.

    Args:
      config: of a classifier.
      images: photos or folders of them; empty: the evaluation split's. Too few are repeated, which no time depends on.

    Raises:
      UserError: a bad config, a network without features in the plane of the image, or no photos.
    """
    settings = config.benchmark
    if config.method != "classifier":
        raise UserError(
            f'This benchmark measures a classifier and a Self-Explainer over it; config.method is "{config.method}".'
            " Name the config of a classifier, for instance configs/imagenet.py:classifier."
        )
    result = loop.untrained(config)
    classifier = make_predictor(config, result.dataset.info, result.model, result.state)
    if classifier.features is None:
        raise UserError(f"Class activation maps need features in the plane of the image; {config.model.name} has none.")
    photos, shown = read_photos(config, result.dataset, images, images_needed(settings))
    scores = np.asarray(classifier.scores(photos))
    class_ids = np.argsort(-scores, axis=1, kind="stable")[:, : settings.classes].astype(np.int32)
    explainer = self_explainer_over(config, result, class_ids.shape[1])
    saliency = np.asarray(attribution.grad_cam(classifier, photos, class_ids[:, :1]))[:, 0]
    weights, strides = {}, ()
    if config.model.name == PEERS_NETWORK:
        weights, strides = peer_network(result.model, result.state)
    return Subject(classifier, explainer, photos, class_ids, saliency, shown, weights, strides)


def peer_network(model, state) -> tuple[dict[str, np.ndarray], tuple[int, ...]]:
    """Weights of an EfficientNet-Lite0 classifier as tests/parity/efficientnet_lite.py takes them, and its strides."""
    weights = foreign_weights(PEERS_NETWORK, state.params, state.batch_stats)
    change = model.input_change
    weights |= {"input_scale": np.asarray(change.scale), "input_offset": np.asarray(change.offset)}
    stages = model.backbone.stages
    return weights, tuple(stage.stride if i == 0 else 1 for stage in stages for i in range(stage.blocks))


def self_explainer_over(config: ml_collections.ConfigDict, classifier: loop.TrainResult, classes: int) -> Predictor:
    """A Self-Explainer whose encoder is that of a classifier. Its decoder is new: no time depends on its weights."""
    info = classifier.dataset.info
    info = DatasetInfo(info.name, classes, info.class_names[:classes], info.multilabel, info.image_size, False)
    config = config.copy_and_resolve_references()
    config.method, config.model.name, config.model.encoder = "self_explainer", "encoder_unet", config.model.name
    model = build_model(config, info)
    shape = (1, info.image_size, info.image_size, 3)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(config.seed), jnp.zeros(shape))
    trained = {"params": classifier.state.params, "batch_stats": classifier.state.batch_stats}
    for kind, tree in variables.items():
        if "backbone" in tree:
            tree["backbone"] = {name: trained[kind]["backbone"][name] for name in tree["backbone"]}
    return network_predictor(config, info, model, variables, masks=bind(apply_masks, model, variables))


def images_needed(settings: ml_collections.ConfigDict) -> int:
    """The most images that a row takes.

    Raises:
      UserError: a number below 1.
    """
    numbers = {name: value for name, value in settings.items() if isinstance(value, int) and name != "operations"}
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f"config.benchmark.{name} = {value} must be at least 1.")
    return max(value for name, value in numbers.items() if name.endswith("images"))


def read_photos(
    config: ml_collections.ConfigDict, dataset: Dataset, images: Sequence[str], count: int
) -> tuple[np.ndarray, str]:
    """Returns `count` photos, normalised, float32 [count, H, W, 3], and a line that says which.

    Raises:
      UserError: there are none, or one cannot be read.
    """
    if images:
        files = photo_files.find_photos(list(images))[:count]
        names = photo_files.unique_names(files)
        read, failed = photo_files.read_photos(files, names, dataset.info.image_size, config.data.mean)
        if failed:
            raise UserError(f"{failed[0]['file']} cannot be read as an image: {failed[0]['reason']}")
        pixels = np.stack([photo.network_image for photo in read])
        found, where = normalise(pixels, config.data.mean, config.data.std), ", ".join(map(str, images))
    else:
        split = config.data.eval_split
        batches = evaluation_batches(dataset, split, config, batch_size=count, max_examples=count)
        batch = next(iter(batches))
        found, where = batch["image"][batch["valid"] > 0], f"split {split!r} of {dataset.info.name}"
    repeated = "" if len(found) == count else f", repeated to {count}"
    photos = found[np.arange(count) % len(found)]
    return photos, f"{len(found)} photos of {where}{repeated}"


# ---- Rows ------------------------------------------------------------------------------------------------------------


def attribution_rows(subject: Subject, settings: ml_collections.ConfigDict) -> list[Row]:
    """The methods, each as one call for several images and classes."""
    classifier, rows = subject.classifier, []

    def add(name, package, method, images, class_ids, note="", task="", **extra):
        shown = {"images": images, "classes": class_ids.shape[1]} | extra
        arguments = (jnp.asarray(subject.images[:images]), jnp.asarray(class_ids[:images]))
        maps = images * class_ids.shape[1]
        rows.append(Row(name, package, task or name, shown, maps, method, arguments, note))

    asked, one = subject.class_ids, subject.class_ids[:, :1]
    for name in ("grad_cam", "grad_cam_plus_plus"):
        method = functools.partial(attribution.METHODS[name], classifier)
        add(name, "grad-cam", method, settings.images, asked)
    # The masks of all classes at once, against Grad-CAM on the same encoder.
    numbers = np.tile(np.arange(asked.shape[1], dtype=np.int32), (len(asked), 1))
    learned = functools.partial(attribution.learned, subject.self_explainer)
    note = "the peer does Grad-CAM"
    add("self_explainer", "grad-cam", learned, settings.images, numbers, note, task="grad_cam")
    # The package takes one class at a time, so one is the same work; ours asks for any number of classes in one pass.
    score_cam = functools.partial(attribution.score_cam, classifier, chunk_size=settings.chunk_size)
    add("score_cam", "grad-cam", score_cam, settings.score_cam_images, one, chunk_size=settings.chunk_size)
    everything = np.tile(np.arange(classifier.num_classes, dtype=np.int32), (len(asked), 1))
    options = {"masks": settings.rise_masks, "chunk_size": settings.chunk_size}
    rise = functools.partial(
        attribution.rise,
        classifier,
        rng=jax.random.key(0),
        num_masks=settings.rise_masks,
        chunk_size=settings.chunk_size,
    )
    note = _less(settings.rise_masks, PUBLISHED_MASKS, "masks")
    add("rise", "torchray", rise, settings.rise_images, everything, note, **options)
    options = {"areas": list(AREAS), "steps": settings.extremal_steps}
    search = functools.partial(attribution.extremal_perturbation, classifier, steps=settings.extremal_steps)
    note = _less(settings.extremal_steps, PUBLISHED_STEPS, "steps")
    some = asked[:, : settings.extremal_classes]
    add("extremal_perturbation", "torchray", search, settings.extremal_images, some, note, **options)
    return rows


def metric_rows(subject: Subject, settings: ml_collections.ConfigDict) -> list[Row]:
    """The metrics that ask the classifier most often, of the map of one class an image."""
    count, size = settings.metric_images, subject.images.shape[1]
    arguments = (subject.images[:count], subject.class_ids[:count, :1], subject.saliency[:count, None])
    arguments = tuple(map(jnp.asarray, arguments))
    curves = functools.partial(faithfulness.deletion_insertion, subject.classifier, chunk_size=settings.chunk_size)
    road = functools.partial(
        faithfulness.road, subject.classifier, rng=jax.random.key(0), chunk_size=settings.chunk_size
    )
    shown = {
        "deletion_insertion": {"images": count, "steps": size},
        "road": {"images": count, "percentages": list(faithfulness.ROAD_PERCENTAGES)},
    }
    functions = {"deletion_insertion": curves, "road": road}
    return [Row(name, "quantus", name, shown[name], count, functions[name], arguments) for name in shown]


ROWS: dict[str, Callable[[Subject, ml_collections.ConfigDict], list[Row]]] = {
    "attribution": attribution_rows,
    "metrics": metric_rows,
}


def chosen(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The rows of these names; all where none is named.

    Raises:
      UserError: there is no such row.
    """
    known = [row.name for row in rows]
    for name in names:
        if name not in known:
            raise UserError(f"config.benchmark.rows: there is no row {name!r}; there are {', '.join(known)}.")
    return [row for row in rows if not names or row.name in names]


def _less(number: int, published: int, what: str) -> str:
    return f"{number} of the published {published} {what}" if number < published else ""


# ---- Measuring -------------------------------------------------------------------------------------------------------


def measure(
    row: Row, peers: peers_lib.Peers, settings: ml_collections.ConfigDict, product_rate: float
) -> dict[str, Any]:
    """Measures one row on both sides. No time is spent waiting for data: photos and maps lie in memory beforehand.

    Args:
      row: what to call.
      peers: the other side.
      settings: config.benchmark: repetitions of each side; with operations the call is compiled once more, as one
        program, for its operations, its memory and the time that takes.
      product_rate: operations per second of a large matrix product on this device.

    Returns:
      {"settings", "note", "maps", "peer": package and version, "seconds": {"ours": [...], "peer": [...]},
      "median_seconds" and "maps_per_second": {"ours", "peer"}, "ratio": how many times faster ours is, "missing": why
      the peer's are missing, "operations_per_map", "operations_per_second", "memory_bytes" and "compile_seconds" of
      the call as one program (see `costs.compiled_costs`), "contractions_per_map": operations of products and
      convolutions alone, which takes no compilation, "share_of_product": their rate over `product_rate`}; what there is
      not is None.
    """
    theirs = functools.partial(peers.seconds, row.task, row.settings)
    own, other, missing = peers_lib.in_turn(lambda: row.function(*row.arguments), theirs, settings.repetitions)
    # Half of a peer's times would be another median.
    medians = {"ours": statistics.median(own), "peer": None if missing else statistics.median(other)}
    compiled = costs.compiled_costs(row.function, *row.arguments) if settings.operations else {}
    counted, contracted = compiled.get("operations"), costs.contractions(row.function, *row.arguments)
    version = peers.about.get("versions", {}).get(row.package)
    return {
        "settings": dict(row.settings),
        "note": row.note,
        "maps": row.maps,
        "peer": f"{row.package} {version}" if version else row.package,
        "seconds": {"ours": own, "peer": other},
        "median_seconds": medians,
        "maps_per_second": {side: row.maps / value if value else None for side, value in medians.items()},
        "ratio": medians["peer"] / medians["ours"] if medians["peer"] else None,
        "missing": missing,
        "operations_per_map": None if counted is None else counted / row.maps,
        "operations_per_second": None if counted is None else counted / medians["ours"],
        "memory_bytes": compiled.get("memory_bytes"),
        "compile_seconds": compiled.get("compile_seconds"),
        "contractions_per_map": contracted / row.maps,
        "share_of_product": contracted / medians["ours"] / product_rate,
    }


def run(
    config: ml_collections.ConfigDict, workdir: str, what: str, images: Sequence[str] = (), peers: str = ""
) -> dict[str, Any]:
    """Measures the rows of `what` and prints each as it is done.

    Args:
      config: of a classifier; config.benchmark says how much.
      workdir: what the peers are handed, and their messages, are written to WORKDIR/peers.
      what: a name in `ROWS`.
      images: see `build_subject`.
      peers: see `benchmark_peers.find_interpreter`.

    Returns:
      {"photos", "network", "cores", "matrix_product": operations per second of a large one, each repetition, "peers":
      what their process says of itself, "rows": {name: see `measure`}}; the row of the Self-Explainer has
      "ratio_to_own_grad_cam" too.

    Raises:
      UserError: a bad config, photos, row or interpreter.
    """
    interpreter = peers_lib.find_interpreter(peers)
    subject, settings = build_subject(config, images), config.benchmark
    rows = chosen(ROWS[what](subject, settings), settings.rows)
    inputs = {"images": subject.images, "class_ids": subject.class_ids, "saliency": subject.saliency}
    inputs["scores"] = np.asarray(subject.classifier.scores(subject.images))
    folder = pathlib.Path(workdir).expanduser() / "peers"
    other = peers_lib.start(interpreter, folder, weights=subject.weights, strides=list(subject.strides), inputs=inputs)
    print(f"{config.model.name}, {subject.images.shape[1]} px, {subject.photos}, {usable_cores()} cores")
    print(other.missing or f"Peers: {other.about}")
    one_device = make_mesh(jax.devices()[:1])
    products = matrix_product_rates(settings.repetitions, one_device, config.model.compute_dtype)
    print(f"A matrix product: {max(products):,.1f} GFLOP/s. Waiting for data: 0 %, the photos lie in memory.")
    print(HEADER)
    measured = {}
    try:
        for row in rows:
            measured[row.name] = measure(row, other, settings, 1e9 * max(products))
            print(table_row(row.name, measured[row.name]), flush=True)
    finally:
        other.close()
    if {"self_explainer", "grad_cam"} <= measured.keys():
        ratio = _seconds(measured, "grad_cam") / _seconds(measured, "self_explainer")
        measured["self_explainer"]["ratio_to_own_grad_cam"] = ratio
        print(f"One pass of the Self-Explainer takes {1 / ratio:.2f} of the time of our Grad-CAM.")
    return {
        "photos": subject.photos,
        "network": config.model.name,
        "cores": usable_cores(),
        "matrix_product": [1e9 * rate for rate in products],
        "peers": other.about,
        "rows": measured,
    }


def _seconds(measured, name) -> float:
    return measured[name]["median_seconds"]["ours"]


HEADER = (
    f"{'':<22} {'ours, s':>9} {'peer, s':>9} {'ratio':>7} {'maps/s':>9} {'GFLOP/map':>10} {'GFLOP/s':>8}"
    f" {'% product':>9} {'peak MB':>9} {'compile s':>9}  settings; peer"
)
"""% product: products and convolutions a second, of a large matrix product's."""


def table_row(name: str, measured: Mapping[str, Any]) -> str:
    """One line of the table that `HEADER` heads: medians, and the peer's seconds over ours."""

    def cell(value, width, digits, scale=1.0):
        return f"{'-' if value is None else format(value / scale, f',.{digits}f'):>{width}}"

    settings = ", ".join(f"{key} {value}" for key, value in measured["settings"].items())
    said = "; ".join(filter(None, (settings, measured["note"], measured["peer"], measured["missing"])))
    return " ".join(
        (
            f"{name:<22}",
            cell(measured["median_seconds"]["ours"], 9, 3),
            cell(measured["median_seconds"]["peer"], 9, 3),
            cell(measured["ratio"], 7, 2),
            cell(measured["maps_per_second"]["ours"], 9, 2),
            cell(measured["operations_per_map"], 10, 3, 1e9),
            cell(measured["operations_per_second"], 8, 1, 1e9),
            cell(measured["share_of_product"], 9, 1, 0.01),
            cell(measured["memory_bytes"], 9, 1, 1e6),
            cell(measured["compile_seconds"], 9, 1),
            f" {said}",
        )
    )
