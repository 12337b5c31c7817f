"""What is in a synthetic picture: textured shapes on a textured background; scene_pixels.py draws it.

Object textures and background textures are disjoint families, so any patch of an object is evidence of it. Except where
the label ties them together, shape, texture, colours and background are independent of one another; of the object's
colours only those too close to the background's are drawn again.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

SHAPES = ("circle", "triangle", "square", "pentagon", "hexagon", "heart", "cross", "star")
OBJECT_TEXTURES = ("dots", "rings", "zigzag", "bricks", "crosses", "triangles", "hatch", "maze")
BACKGROUND_TEXTURES = ("plain", "stripes", "checks", "clouds", "grain", "gradient")
MAX_CLASSES = len(SHAPES)
MAX_OBJECTS = 8

MARGIN = 2 / 64
"""Least gap between two objects and between an object and the border, in image sides."""
AREA_RANGE = (0.07, 0.22)
"""Area of a single object, in images; several objects get `area / count**0.6`."""
PERIOD_RANGE = (7 / 64, 10 / 64)
"""Length over which a texture repeats, in image sides."""

TILE_CELLS = 20
"""Periods along one side of a texture tile: more than a rotated picture can show."""

_LUMA = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class Texture:
    """A pattern that mixes two colours. Colours are RGB in [0, 1], lengths are fractions of the image side."""

    family: str
    colors: tuple[tuple[float, float, float], tuple[float, float, float]]
    period: float
    angle: float
    phase: tuple[float, float]

    @property
    def mean_color(self) -> tuple[float, float, float]:
        """The colour half-way between the two."""
        (red, green, blue), (other_red, other_green, other_blue) = self.colors
        return (red + other_red) / 2, (green + other_green) / 2, (blue + other_blue) / 2


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One object: centre (x, y) and circumscribed radius are fractions of the image side, the angle is in radians."""

    class_id: int
    shape: str
    texture: Texture
    center: tuple[float, float]
    radius: float
    angle: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is in a picture, independent of its resolution.

    confounded: the background was chosen by the first object's class.
    noise: half-width of the uniform pixel noise, in grey levels.
    seed: of the random numbers inside the picture (noise pixels, cloud patterns).
    """

    background: Texture
    objects: tuple[SceneObject, ...]
    confounded: bool
    noise: float
    seed: int


def _ring_of_points(count: int, radii=(1.0,)) -> np.ndarray:
    """`count` points around the origin whose distances cycle through `radii`; the first one points up. [count, 2]."""
    angles = 2 * np.pi * np.arange(count) / count - np.pi / 2
    distances = np.resize(np.asarray(radii, np.float64), count)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * distances[:, None]  # [count, 2]


def _heart() -> np.ndarray:
    """The classic heart curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t. [64, 2]."""
    t = 2 * np.pi * np.arange(64) / 64
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2.5], axis=1)  # [64, 2], shifted so that its smallest enclosing circle is near the origin


def _cross(arm: float = 0.36) -> np.ndarray:
    """A plus sign with arms of half-width `arm` times their length. [12, 2]."""
    corner = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    turns = [np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return np.concatenate([np.asarray(corner) @ turn for turn in turns])  # [12, 2]


def polygon_area(vertices: np.ndarray) -> float:
    """Area inside a simple polygon, vertices [N, 2] (shoelace formula)."""
    x, y = vertices.T
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def _unit_polygons() -> dict[str, np.ndarray]:
    polygons = {
        "circle": _ring_of_points(64),
        "triangle": _ring_of_points(3),
        "square": _ring_of_points(4),
        "pentagon": _ring_of_points(5),
        "hexagon": _ring_of_points(6),
        "heart": _heart(),
        "cross": _cross(),
        "star": _ring_of_points(10, (1.0, 0.45)),
    }
    return {name: points / np.linalg.norm(points, axis=1).max() for name, points in polygons.items()}


POLYGONS = _unit_polygons()
"""Vertices [N, 2] of every shape, inside the unit circle and touching it; x to the right, y down."""
_POLYGON_AREAS = {name: polygon_area(points) for name, points in POLYGONS.items()}


def shape_vertices(shape: str, center: tuple[float, float], radius: float, angle: float) -> np.ndarray:
    """Vertices [N, 2] (x, y) of a shape that is turned by `angle`, scaled to `radius` and moved to `center`."""
    cos, sin = math.cos(angle) * radius, math.sin(angle) * radius
    return POLYGONS[shape] @ np.array(((cos, sin), (-sin, cos))) + np.array(center)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _choice(rng: np.random.Generator, count: int) -> int:
    return int(rng.random() * count)


def _clipped(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _color(luma: float, hue: float, chroma: float) -> tuple[float, float, float]:
    """RGB in [0, 1] of exactly this luma; the chroma is reduced where the colour does not exist at this luma."""
    u, v = chroma * math.cos(hue), chroma * math.sin(hue)
    offsets = (1.140 * v, -0.395 * u - 0.581 * v, 2.032 * u)
    scale = 1.0
    for offset in offsets:
        room = 1 - luma if offset > 0 else luma
        scale = min(scale, room / max(abs(offset), 1e-6))
    red, green, blue = offsets
    return _clipped(luma + scale * red), _clipped(luma + scale * green), _clipped(luma + scale * blue)


def _draw_texture(rng: np.random.Generator, family: str, contrast: float, hue: float | None = None) -> Texture:
    """A texture whose two colours differ by at least `contrast` in luma; with `hue`, both are of about that hue."""
    half = 0.5 * min(contrast * _between(rng, 1.0, 1.3), 0.85)
    luma = _between(rng, half + 0.05, 0.95 - half)
    colors = []
    for sign in (-1, 1):
        own_hue = _between(rng, -math.pi, math.pi) if hue is None else hue + _between(rng, -0.15, 0.15)
        chroma = _between(rng, 0.02, 0.35) if hue is None else 0.3
        colors.append(_color(luma + sign * half, own_hue, chroma))
    if rng.random() < 0.5:
        colors.reverse()
    # The maze differs from place to place, the lattices do not; the rings' centre must stay inside the object.
    reach = TILE_CELLS / 2 if family == "maze" else 1.0
    return Texture(
        family=family,
        colors=tuple(colors),
        period=_between(rng, *PERIOD_RANGE),
        angle=_between(rng, 0.0, 2 * math.pi),
        phase=(_between(rng, -reach, reach), _between(rng, -reach, reach)),
    )


def _draw_object_texture(
    rng: np.random.Generator, family: str, contrast: float, background: Texture, distance: float
) -> Texture:
    """A texture whose mean colour is `distance` or more from the background's (the farthest of 24 tries otherwise)."""
    best, best_distance = None, -1.0
    for _ in range(24):
        texture = _draw_texture(rng, family, contrast)
        found = math.dist(texture.mean_color, background.mean_color)
        if found > best_distance:
            best, best_distance = texture, found
        if found >= distance:
            break
    return best


def _place(rng: np.random.Generator, shapes: list[str]) -> list[tuple[tuple[float, float], float, float]]:
    """(centre, radius, angle) of each shape, such that all are inside the image and no two enclosing circles touch.

    Tries random layouts, each round with smaller shapes; what still does not fit is put on a regular grid.
    """
    count = len(shapes)
    shrink = count**-0.6
    for _ in range(10):
        areas = [shrink * _between(rng, *AREA_RANGE) for _ in shapes]
        radii = [math.sqrt(area / _POLYGON_AREAS[shape]) for area, shape in zip(areas, shapes, strict=True)]
        placed = {}
        for position in sorted(range(count), key=radii.__getitem__, reverse=True):  # The largest finds room first.
            radius, angle = radii[position], _between(rng, 0.0, 2 * math.pi)
            points = shape_vertices(shapes[position], (0.0, 0.0), radius, angle)
            (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
            for _ in range(16):
                x = _between(rng, MARGIN - left, 1 - MARGIN - right)
                y = _between(rng, MARGIN - top, 1 - MARGIN - bottom)
                if all(math.dist((x, y), center) >= radius + other + MARGIN for center, other, _ in placed.values()):
                    placed[position] = ((x, y), radius, angle)
                    break
            else:
                break
        if len(placed) == count:
            return [placed[position] for position in range(count)]
        shrink *= 0.85
    columns = math.ceil(math.sqrt(count))
    cells = rng.permutation(columns * columns)[:count].tolist()
    centers = [((cell % columns + 0.5) / columns, (cell // columns + 0.5) / columns) for cell in cells]
    return [(center, 0.5 / columns - MARGIN, _between(rng, 0.0, 2 * math.pi)) for center in centers]


def sample_scene(
    rng: np.random.Generator,
    *,
    label: str = "object",
    num_classes: int = MAX_CLASSES,
    min_objects: int = 1,
    max_objects: int = 1,
    difficulty: float = 0.5,
    confounding: float = 0.0,
) -> Scene:
    """Draws what is in a picture, without drawing it; the arguments are those of `Synthetic`.

    The background is drawn before anything of the object but its class, so that it depends on nothing else.
    """
    count = min_objects + _choice(rng, max_objects - min_objects + 1)
    classes = [_choice(rng, num_classes) for _ in range(count)]
    contrast = 0.62 - 0.36 * difficulty
    confounded = rng.random() < confounding
    if confounded:
        family = BACKGROUND_TEXTURES[classes[0] % len(BACKGROUND_TEXTURES)]
        background = _draw_texture(rng, family, 0.7 * contrast, hue=2 * math.pi * classes[0] / num_classes)
    else:
        family = BACKGROUND_TEXTURES[_choice(rng, len(BACKGROUND_TEXTURES))]
        background = _draw_texture(rng, family, 0.7 * contrast)
    shapes = [SHAPES[_choice(rng, len(SHAPES)) if label == "texture" else c] for c in classes]
    families = [OBJECT_TEXTURES[_choice(rng, len(OBJECT_TEXTURES)) if label == "shape" else c] for c in classes]
    objects = []
    for class_id, shape, family, (center, radius, angle) in zip(
        classes, shapes, families, _place(rng, shapes), strict=True
    ):
        texture = _draw_object_texture(rng, family, contrast, background, distance=0.4 - 0.15 * difficulty)
        objects.append(SceneObject(class_id, shape, texture, center, radius, angle))
    return Scene(background, tuple(objects), confounded, noise=24.0 * difficulty, seed=int(rng.integers(2**62)))
