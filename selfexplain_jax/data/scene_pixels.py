"""The pixels of a scene (see scenes.py) and the mask of its objects, anti-aliased."""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np

from selfexplain_jax.data.scenes import PERIOD_RANGE, TILE_CELLS, Scene, Texture, shape_vertices

_RAMP = np.linspace(0, 1, 256, dtype=np.float32)[:, None]  # [256, 1]


def _lattice(family: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Patterns that repeat every four cells in u and v (coordinates in cells): True where the second colour is."""
    a, b = np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5)  # Distances from the cell's centre lines.
    match family:
        case "dots":
            return a**2 + b**2 < 0.33**2
        case "crosses":
            return (np.minimum(a, b) < 0.12) & (np.maximum(a, b) < 0.41)
        case "zigzag":
            return (v + 1.2 * np.abs((0.75 * u) % 1 - 0.5)) % 1 < 0.5
        case "bricks":
            row = np.floor(1.5 * v)
            return ((1.5 * v) % 1 < 0.22) | ((0.75 * u + 0.5 * row) % 1 < 0.11)
        case "triangles":
            return 2 * np.abs((u + 0.5 * np.floor(v)) % 1 - 0.5) < v % 1
        case "hatch":
            return ((u + 0.5 * v) % 1 < 0.24) | ((u - 0.5 * v) % 1 < 0.24)
        case "stripes":
            return a < 0.25
        case "checks":
            return (a < 0.25) ^ (b < 0.25)
    raise ValueError(f"no lattice {family!r}")


def _soft_threshold(field: np.ndarray, slope: float) -> np.ndarray:
    return np.clip(0.5 + slope * field, 0, 1)


@functools.lru_cache(maxsize=64)
def texture_tile(family: str, image_size: int) -> tuple[np.ndarray, int]:
    """(uint8 tile [S, S], pixels per cell): 20 x 20 periods of a pattern, anti-aliased for pictures of this size."""
    cell = max(round(PERIOD_RANGE[1] * image_size), 4)
    side = TILE_CELLS * cell
    if family == "rings":
        axis = (np.arange(side, dtype=np.float32) + 0.5) / cell - TILE_CELLS / 2
        tile = _soft_threshold(np.cos(2 * np.pi * np.hypot(axis[:, None], axis[None, :])), cell / 12)
    elif family == "maze":  # Band-pass noise: the same wavelength in every direction.
        noise = np.random.default_rng(8).standard_normal((4 * TILE_CELLS, 4 * TILE_CELLS))  # A quarter cell a sample.
        frequency = np.fft.fftfreq(4 * TILE_CELLS, 1 / 4)
        ring = np.exp(-(((np.hypot(frequency[:, None], frequency[None, :]) - 1) / 0.12) ** 2))
        field = np.fft.ifft2(np.fft.fft2(noise) * ring).real.astype(np.float32)
        field = cv2.resize(field / field.std(), (side, side), interpolation=cv2.INTER_CUBIC)
        tile = _soft_threshold(field, cell / 4)
    else:
        oversampling = 8
        axis = (np.arange(4 * cell * oversampling, dtype=np.float32) + 0.5) / (cell * oversampling)
        v, u = np.meshgrid(axis, axis, indexing="ij")
        patch = _lattice(family, u, v).reshape(4 * cell, oversampling, 4 * cell, oversampling).mean(axis=(1, 3))
        tile = np.tile(patch, (TILE_CELLS // 4, TILE_CELLS // 4))
    return np.ascontiguousarray(np.rint(255 * tile), dtype=np.uint8), cell


def _pattern(
    texture: Texture, image_size: int, origin: tuple[float, float], corner: tuple[int, int], shape: tuple[int, int]
) -> np.ndarray:
    """The pattern turned about `origin`, in the window of this `shape` with upper left pixel `corner`. uint8 [h, w]."""
    tile, cell = texture_tile(texture.family, image_size)
    scale = cell / (texture.period * image_size)
    cos, sin = scale * math.cos(texture.angle), scale * math.sin(texture.angle)
    # Pixel i has its centre at i + 0.5, in the window as in the tile.
    x, y = corner[0] + 0.5 - origin[0], corner[1] + 0.5 - origin[1]
    middle = tile.shape[0] / 2 - 0.5
    offset_x = middle + texture.phase[0] * cell + cos * x + sin * y
    offset_y = middle + texture.phase[1] * cell - sin * x + cos * y
    matrix = np.array(((cos, sin, offset_x), (-sin, cos, offset_y)))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(tile, matrix, (shape[1], shape[0]), flags=flags, borderMode=cv2.BORDER_WRAP)


def _noise_pattern(rng: np.random.Generator, points: int, image_size: int) -> np.ndarray:
    """Smooth noise uint8 [H, W] that interpolates `points` x `points` random values."""
    grid = np.frombuffer(rng.bytes(points * points), np.uint8).reshape(points, points)
    return cv2.resize(grid, (image_size, image_size), interpolation=cv2.INTER_CUBIC)


def _background_pattern(texture: Texture, rng: np.random.Generator, image_size: int) -> np.ndarray:
    """The background's pattern, uint8 [H, W]."""
    match texture.family:
        case "plain":
            return np.full((image_size, image_size), 128, np.uint8)
        case "clouds":
            return _noise_pattern(rng, round(1 / texture.period), image_size)
        case "grain":
            return _noise_pattern(rng, round(4 / texture.period), image_size)
        case "gradient":
            cos, sin = math.cos(texture.angle), math.sin(texture.angle)
            axis = np.linspace(-127.0, 127.0, image_size, dtype=np.float32) / (abs(cos) + abs(sin))
            return ((cos * axis + 127.5)[None, :] + (sin * axis)[:, None]).astype(np.uint8)
    return _pattern(texture, image_size, (image_size / 2, image_size / 2), (0, 0), (image_size, image_size))


def _paint(pattern: np.ndarray, texture: Texture) -> np.ndarray:
    """Pattern uint8 [h, w] -> colours uint8 [h, w, 3]."""
    first, second = np.array(texture.colors, np.float32) * 255
    palette = first + _RAMP * (second - first)  # [256, 3]
    return cv2.applyColorMap(pattern, np.rint(palette).astype(np.uint8)[:, None, :])


def coverage(vertices: np.ndarray, image_size: int) -> tuple[np.ndarray, int, int]:
    """How much of each pixel a polygon covers.

    Args:
      vertices: [N, 2] (x, y) in pixels, where pixel (0, 0) is the square from 0 to 1.
      image_size: pixels per side of the picture.

    Returns:
      (alpha uint8 [h, w], where 255 is all of the pixel; x and y of the window's upper left pixel).
    """
    left, top = (max(math.floor(value), 0) for value in vertices.min(axis=0).tolist())
    right, bottom = (min(math.ceil(value), image_size) for value in vertices.max(axis=0).tolist())
    width, height = right - left, bottom - top
    oversampling, bits = (8 if image_size <= 96 else 4), 6
    fine = np.zeros((height * oversampling, width * oversampling), np.uint8)
    points = ((vertices - (left, top)) * oversampling - 0.5) * (1 << bits)
    outline = [np.rint(points).astype(np.int32)]
    cv2.fillPoly(fine, outline, 255, lineType=cv2.LINE_8, shift=bits)
    # fillPoly fills whatever the outline touches, about half of which lies outside.
    cv2.polylines(fine, outline, True, 128, lineType=cv2.LINE_8, shift=bits)
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA), left, top


def render(scene: Scene, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a scene.

    Returns:
      (image uint8 [H, W, 3], mask uint8 [H, W]: class + 1 where an object covers at least half of the pixel, else 0).
    """
    rng = np.random.Generator(np.random.SFC64(scene.seed))
    image = _paint(_background_pattern(scene.background, rng, image_size), scene.background)
    mask = np.zeros((image_size, image_size), np.uint8)
    for item in scene.objects:
        origin = (item.center[0] * image_size, item.center[1] * image_size)
        vertices = shape_vertices(item.shape, origin, item.radius * image_size, item.angle)
        alpha, left, top = coverage(vertices, image_size)
        window = np.s_[top : top + alpha.shape[0], left : left + alpha.shape[1]]
        colors = _paint(_pattern(item.texture, image_size, origin, (left, top), alpha.shape), item.texture)
        weight = np.multiply(alpha, 1 / 255, dtype=np.float32)
        image[window] = cv2.blendLinear(colors, np.ascontiguousarray(image[window]), weight, 1 - weight)
        np.copyto(mask[window], item.class_id + 1, where=alpha >= 128)
    if scene.noise > 0:
        noise = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape)
        image = cv2.addWeighted(image, 1.0, noise, 2 * scene.noise / 255, -scene.noise)
    return image, mask
