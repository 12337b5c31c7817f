"""Writes predecessor.npz: what predecessor_losses.py says of logit maps that are worked by hand, and of noise.

python tests/parity/generate_predecessor.py
"""

import pathlib

import numpy as np
import predecessor_losses as losses
import torch
from predecessor_cases import CASES, LOWER, TEMPERATURE, UPPER

FOLDER = pathlib.Path(__file__).parent
GATE = {"gate_steepness": 2.0, "gate_offset": 0.2}


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
    result = {f"{case}/{name}": value for case, given in CASES.items() for name, value in terms(*given()).items()}
    np.savez_compressed(FOLDER / "predecessor.npz", **result)
    print({name: value.round(4).tolist() for name, value in result.items() if value.size < 5})


if __name__ == "__main__":
    main()
