"""Training on some of a dataset's classes: names, labels and masks follow; and what becomes of images with none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from selfexplain_jax.types import VOID, UserError

EMPTY = ("keep", "drop")
"""What may become of images that show none of the classes."""


class ClassSubset:
    """The classes of a dataset that are trained on.

    Args:
      dataset: name of the dataset, for messages.
      all_names: the dataset's classes in the order of its own class ids.
      chosen: the wanted ones, in the order that the new class ids take; empty = all.

    Attributes:
      names: of the chosen classes. Class id c of the subset is `names[c]`.

    Raises:
      UserError: a name that does not exist, one that is there twice, or fewer than two.
    """

    def __init__(self, dataset: str, all_names: Sequence[str], chosen: Sequence[str] = ()):
        if isinstance(chosen, str):
            raise UserError(
                f"Dataset {dataset!r}: classes={chosen!r} must be a list of names: classes=({chosen!r}, ...)."
            )
        chosen = tuple(chosen)
        unknown = [name for name in chosen if name not in all_names]
        if unknown:
            raise UserError(
                f"Dataset {dataset!r} has no class {', '.join(map(repr, unknown))} (option classes). It has "
                f"{len(all_names)}: {', '.join(all_names[:100])}{' ...' if len(all_names) > 100 else ''}."
            )
        if len(set(chosen)) != len(chosen) or len(chosen) == 1:
            raise UserError(f"Dataset {dataset!r}: classes={chosen} must name two classes or more, each once.")
        self.names = chosen or tuple(all_names)
        self._new_ids = {all_names.index(name): new for new, name in enumerate(self.names)}
        table = np.zeros(256, np.uint8)
        table[VOID] = VOID
        if len(all_names) < VOID:  # Datasets of more classes have no masks.
            for old, new in self._new_ids.items():
                table[old + 1] = new + 1
        self._table = table

    def class_ids(self, old_ids: Iterable[int]) -> np.ndarray:
        """Returns the subset's class id, or -1, for each of the dataset's own class ids. int64 [n]."""
        return np.array([self._new_ids.get(int(old), -1) for old in old_ids], np.int64)

    def label(self, old_ids: Iterable[int]) -> np.ndarray:
        """Returns the label float32 [C], multi-hot; all zeros where none of the classes is shown."""
        label = np.zeros(len(self.names), np.float32)
        ids = self.class_ids(old_ids)
        label[ids[ids >= 0]] = 1.0
        return label

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Renumbers a mask uint8 [H, W]. Pixels of classes left out become background: they are objects that have no
        name here, and a network that marks them as one of the classes is wrong. Void stays void."""
        return cv2.LUT(mask, self._table)


def check_empty(dataset: str, empty: str) -> None:
    """Raises UserError unless `empty` is one of EMPTY."""
    if empty not in EMPTY:
        raise UserError(f"Dataset {dataset!r}: empty={empty!r} must be one of {', '.join(map(repr, EMPTY))}.")


def keep_examples(labels: np.ndarray, empty: str) -> tuple[np.ndarray, int]:
    """Decides which examples of a split stay.

    Args:
      labels: float32 [N, C].
      empty: "keep" or "drop" those whose label is all zero.

    Returns:
      (positions of those that stay, int64 [M]; how many have an all-zero label).
    """
    shows_something = labels.any(axis=1)  # [N]
    stay = np.flatnonzero(shows_something) if empty == "drop" else np.arange(len(labels))
    return stay, int((~shows_something).sum())
