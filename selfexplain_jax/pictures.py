"""Drawing masks over images, and grids of pictures with titles."""

from __future__ import annotations

import io
import os
import pathlib
from collections.abc import Mapping, Sequence

import cv2
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from selfexplain_jax.folders import open_folder, write_whole
from selfexplain_jax.types import UserError


def overlay(image: np.ndarray, mask: np.ndarray, *, color_map: str = "viridis", opacity: float = 0.6) -> np.ndarray:
    """Blends a colour map of a mask over an image.

    Args:
      image: [H, W, 3] in 0..1.
      mask: [H, W] in 0..1; 0 takes the darkest colour, 1 the brightest.
      color_map: a perceptually uniform colour map of matplotlib.
      opacity: share of the colour in the result, 0..1.

    Returns:
      uint8 [H, W, 3].

    Raises:
      UserError: the sizes differ or there is a NaN.
    """
    image, mask = np.asarray(image, np.float32), np.asarray(mask, np.float32)
    if image.ndim != 3 or image.shape[-1] != 3 or image.shape[:2] != mask.shape:
        raise UserError(f"A mask of shape {mask.shape} does not fit an image of shape {image.shape}: resize the mask.")
    if not (np.isfinite(image).all() and np.isfinite(mask).all()):
        raise UserError("Cannot draw an overlay: the image or the mask holds values that are not finite.")
    colors = matplotlib.colormaps[color_map](np.clip(mask, 0, 1))[..., :3]  # [H, W, 3]
    blend = (1 - opacity) * np.clip(image, 0, 1) + opacity * colors
    return np.round(255 * blend).astype(np.uint8)


def reduced(picture: np.ndarray, side: int, interpolation: int = cv2.INTER_AREA) -> np.ndarray:
    """Returns a picture, uint8 [H, W] or [H, W, 3], whose longest side is `side` pixels at most."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return cv2.resize(picture, size, interpolation=interpolation)


def save_grid(
    path: str | os.PathLike,
    columns: Mapping[str, Sequence[np.ndarray | str | None]],
    row_titles: Sequence[str] | None = None,
    cell_titles: Mapping[str, Sequence[str]] | None = None,
    also: Sequence[str] = (),
) -> None:
    """Writes a figure with one row per example and one titled column per kind of picture.

    Args:
      path: file to write; its suffix gives the format (.png).
      columns: {title: one picture per row}. A picture is [H, W, 3] (uint8, or float in 0..1), a grey one [H, W]
        (float in 0..1, black to white), a text for a cell that says why it has none, or None for an empty cell.
      row_titles: text at the left of each row.
      cell_titles: {column title: text above each of its cells}.
      also: suffixes of further files of the same name, such as ".pdf", whose text stays text.

    Raises:
      UserError: no pictures, columns of different lengths, or a picture with a NaN.
    """
    lengths = {title: len(pictures) for title, pictures in columns.items()}
    rows = max(lengths.values(), default=0)
    if rows == 0 or len(set(lengths.values())) != 1:
        raise UserError(f"A grid needs columns of one length with at least one picture; got {lengths or 'no columns'}.")
    cell_titles = cell_titles or {}
    unknown = set(cell_titles) - set(columns)
    if unknown:
        raise UserError(f"Cell titles for columns that do not exist: {sorted(unknown)}; columns are {list(columns)}.")
    # A figure of its own rather than pyplot's: no global state, no window, nothing to close.
    figure = Figure(figsize=(1.7 * len(columns) + 0.4, 1.9 * rows + 0.3), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, pictures) in enumerate(columns.items()):
        for row, picture in enumerate(pictures):
            axis = axes[row, column]
            lines = [title] if row == 0 else []
            if title in cell_titles:
                lines.append(cell_titles[title][row])
            axis.set_title("\n".join(lines), fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0 and row_titles is not None:
                axis.set_ylabel(row_titles[row], fontsize=8)
            if picture is None:
                axis.set_frame_on(False)
                continue
            if isinstance(picture, str):
                axis.set_box_aspect(1)
                axis.text(0.5, 0.5, picture, fontsize=8, ha="center", va="center", transform=axis.transAxes)
                continue
            axis.imshow(_drawable(picture, title, row), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    path = open_folder(path)
    for suffix in (path.suffix or ".png", *also):
        save_figure(figure, path.with_suffix(suffix))


def save_figure(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure; a PDF gets its fonts whole (TrueType), which publishers ask for, and no date."""
    kind, content = path.suffix.removeprefix("."), io.BytesIO()
    pdf = kind == "pdf"
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        options = {"dpi": 300, "metadata": {"CreationDate": None}} if pdf else {}
        figure.savefig(content, format=kind, **options)
    write_whole(path, content.getvalue())


def _drawable(picture: np.ndarray, title: str, row: int) -> np.ndarray:
    """Returns the picture as uint8 colours or as floats in 0..1; refuses what is not finite."""
    picture = np.asarray(picture)
    if picture.dtype == np.uint8:
        return picture if picture.ndim == 3 else picture / 255
    if not np.isfinite(picture).all():
        raise UserError(f"Picture {row} of column {title!r} holds values that are not finite.")
    return np.clip(picture.astype(np.float32), 0, 1)
