"""Small folders of runs and comparisons, as training, evaluation and comparison leave them, without running any."""

import json
import pathlib

import numpy as np

from selfexplain_jax import examples, pictures

ROOT = pathlib.Path(__file__).resolve().parents[1]
ATTACK = "<script>alert(1)</script>"
CLASSES = ["cat", ATTACK, 'dog & "co"\'']
SIZE = 12


def write_run(folder, *, seed=0, iou=0.5, pictures=4, steps=40):
    """A run of three classes, one of which attacks the page."""
    folder.mkdir(parents=True)
    config = {"seed": seed, "method": "self_explainer", "data": {"name": ATTACK, "image_size": SIZE}}
    config |= {"objective": {"area": {"weight": 1.0, "start": 20}}, "train": {"steps": steps}}
    metrics = {"iou": iou, "accuracy": 0.75, "steps": steps, "iou_curve": [0.1] * 9, "swap_owner_rate": 0.2}
    metrics |= {"controls": {"all_one": {"iou": 0.15}}, "swap_owner_rate_ground_truth": 0.1}
    results = {"metrics": metrics, "counts": {"examples": 40, "swap_owner_rate": 40}, "seed": seed, "config": config}
    results |= {"commit": "abc", "dirty": True, "versions": {"jax": "1"}, "steps": steps, "train_seconds": 61.0}
    (folder / "results.json").write_text(json.dumps(results))
    lines = [{"step": s, "loss": 1 / s, "term/area": s / 40, "learning_rate": 0.1} for s in range(10, 41, 10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if pictures:
        write_examples(folder, pictures, ["mask"])
        draw_masks(folder)
    return folder


def write_comparison(folder, *, shift=0.0, pictures=4):
    """Three methods and a control, one of which failed on an image."""
    folder.mkdir(parents=True)

    def row(iou, deletion, failures=()):
        metrics = {"iou": iou + shift, "deletion": deletion, "increase": 0.1}
        return {"model": "m", "metrics": metrics, "seconds_per_image": iou, "failures": list(failures)}

    failure = {"image": 3, "message": f"RuntimeError: {ATTACK}"}
    methods = {"learned": row(0.6, 0.2), "grad_cam": row(0.4, 0.1, [failure]), "rise": row(0.5, None)}
    methods["centre"] = row(0.3, 0.5)
    config = {"seed": 0, "data": {"name": "synthetic", "image_size": SIZE, "eval_split": "test", "options": {}}}
    results = {"methods": methods, "controls": ["centre"], "images": 39, "asks_the_model": ["deletion"]}
    results |= {"metrics": {}, "counts": {}, "seed": 0, "config": config}

    def similar(ssim, correlation, defined):
        return {"ssim": ssim, "rank_correlation": correlation, "defined": defined}

    checks = {"cascading": {"head": similar(0.5, None, 0), "stem": similar(0.1, 0.2, 7)}}
    checks["independent"] = {"head": similar(0.3, None, 0), "stem": similar(0.5, 0.6, 6)}
    checks["random_labels"] = similar(0.3, -0.1, 5)
    results["sanity_checks"] = {
        "learned": {"images": 7, "checks": checks, "failures": {}},
        "rise": {"images": 7, "checks": {}, "failures": {"cascading": ATTACK}},
    }
    (folder / "comparison.json").write_text(json.dumps(results))
    if pictures:
        write_examples(folder, pictures, list(methods))
    return folder


def write_examples(folder, count, methods, total=40):
    """Images of all three classes, every tenth of them wrong."""
    rng = np.random.default_rng(0)
    collector = examples.Collector(CLASSES, methods, methods[0], count, np.arange(total))
    rows = {}
    for position in range(total):
        label, decided = np.zeros(3), np.zeros(3)
        label[position % 3] = decided[(position + (position % 10 == 4)) % 3] = 1
        iou = {method: 0.5 + position / 100 for method in methods}
        rows[position] = examples.row_of(label, {"m": (0.9 * decided, decided)}, iou)

    def draw(position):
        drawn = np.ones((len(methods), 1), bool)
        drawn[-1] = position % 2
        mask = np.full((SIZE, SIZE), position % 3 + 1, np.uint8)
        maps = rng.random((len(methods), 1, SIZE, SIZE))
        return examples.keep(rng.random((SIZE, SIZE, 3)), mask, np.asarray([position % 3]), maps, drawn)

    collector.add(rows, draw)
    examples.write(folder, collector.examples(lambda position: f"{position}.jpg"))


def draw_masks(folder):
    """Masks at two steps."""
    for step in (20, 40):
        pictures.save_grid(folder / "pictures" / f"masks_{step:06d}.png", {"mask": [np.full((4, 4), step / 40)]})
