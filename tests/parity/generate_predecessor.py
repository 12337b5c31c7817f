"""Writes predecessor.npz: what predecessor_losses.py says of logit maps that are worked by hand, and of noise.

python tests/parity/generate_predecessor.py
"""

import pathlib

import numpy as np
import predecessor_losses as losses
import torch

FOLDER = pathlib.Path(__file__).parent
LOWER, UPPER, TEMPERATURE = 0.25, 0.5, 2.0
GATE = {"gate_steepness": 2.0, "gate_offset": 0.2}


def by_hand() -> tuple[np.ndarray, np.ndarray]:
    """One image of 2 x 2 cells, two classes, the first present: masks of .8 .5 .2 .5 and of .5 everywhere."""
    maps = np.zeros((1, 2, 2, 2), np.float32)  # [B, h, w, C]
    maps[0, :, :, 0] = np.log([[4.0, 1.0], [0.25, 1.0]])
    return maps, np.array([[1, 0]], np.float32)


def noise() -> tuple[np.ndarray, np.ndarray]:
    """Three images with one, two and three of four classes."""
    maps = np.random.RandomState(0).normal(0, 2, size=(3, 6, 6, 4)).astype(np.float32)
    return maps, np.array([[0, 1, 0, 0], [1, 0, 0, 1], [1, 1, 1, 0]], np.float32)


def terms(maps: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
    """Every term, with the pooled scores in the place of those of all passes."""
    maps, label = torch.from_numpy(maps).permute(0, 3, 1, 2), torch.from_numpy(label)
    target, other = losses.largest_of(maps, label, True), losses.largest_of(maps, label, False)
    scores = losses.pooled(maps, TEMPERATURE)
    found = {
        "scores": scores,
        "target_mask": target,
        "non_target_mask": other,
        "softmax": losses.cross_entropy(scores, label, "softmax"),
        "sigmoid": losses.cross_entropy(scores, label, "sigmoid"),
        "entropy": losses.lacking_entropy(scores),
        "area_bounds": losses.area_bounds(maps, label, LOWER, UPPER),
        "smoothness": losses.total_variation(target) + losses.total_variation(other),
        "gate": losses.gate(losses.cross_entropy(scores, label, "sigmoid"), GATE),
        "iou": losses.iou(target, (other > target).float()),
    }
    return {name: value.numpy() for name, value in found.items()}


def main():
    """Computes and writes everything."""
    cases = {"by_hand": by_hand(), "noise": noise()}
    result = {f"{case}/{name}": value for case, given in cases.items() for name, value in terms(*given).items()}
    np.savez_compressed(FOLDER / "predecessor.npz", **result)
    print({name: value.round(4).tolist() for name, value in result.items() if value.size < 5})


if __name__ == "__main__":
    main()
