"""Training curves as small drawings, a chart for each logged number and a line for each run; also as a figure."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from selfexplain_jax.pictures import save_figure

Line = list[tuple[int, float]]

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 320, 170, 46, 22, 8, 10
"""Size of a chart and of its margins, in units of its drawing."""
MOST_POINTS = 400
"""Points of a line that are drawn, at most: evenly spaced ones, the last among them."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Wong, Nature Methods 2011: told apart with any colour vision. Lines differ in their dashes too."""
NOT_DRAWN = ("train_seconds", "steps_per_second")
FIRST = ("loss", "accuracy")


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart in units of its drawing: `lines` are (run, path, points [(step, value)]); ticks are (place, text).

    starts: place of the step at which the term begins; None where it does from the start.
    """

    name: str
    lines: list[tuple[str, str, Line]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    last_step: int
    starts: float | None

    def points(self) -> list[tuple[str, list[tuple[int, float]]]]:
        """Returns (run, points) with values of five digits, for the page to show them."""
        return [(run, [(step, float(f"{value:.5g}")) for step, value in points]) for run, _, points in self.lines]


def charts(runs: Mapping[str, Mapping[str, Line]], starts: Mapping[str, int]) -> list[Chart]:
    """Returns a chart for every number that some run logged: loss and accuracy, then the terms, then the rest.

    Args:
      runs: {run: {name: [(step, value)]}}.
      starts: {term: step at which it begins}.
    """
    names = dict.fromkeys(name for curves in runs.values() for name in curves if name not in NOT_DRAWN)

    def place(name):
        return (FIRST.index(name) if name in FIRST else 2 if name.startswith("term/") else 3, name)

    drawn = []
    for name in sorted(names, key=place):
        lines = {run: curves[name] for run, curves in runs.items() if curves.get(name)}
        drawn.append(chart(name, lines, starts.get(name.removeprefix("term/")) or None))
    return drawn


def chart(name: str, lines: Mapping[str, Line], start: int | None = None) -> Chart:
    """Returns one chart; see `Chart`. Values that are not finite are left out, and make a gap."""
    lines = {run: thinned(line) for run, line in lines.items()}
    finite = [value for line in lines.values() for _, value in line if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    # Close to 0 the axis begins there: a curve is then read for its height and not for its wiggles alone.
    low = 0.0 if 0 < low < 0.5 * high else low
    if high - low <= 1e-9 * max(abs(high), 1e-30):
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    last = max(line[-1][0] for line in lines.values())

    def x(step):
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / max(last, 1), 1)

    def y(value):
        return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - low) / (high - low), 1)

    def path(line):
        parts, pen = [], "M"
        for step, value in line:
            pen = "M" if not math.isfinite(value) else pen
            if math.isfinite(value):
                parts.append(f"{pen}{x(step)} {y(value)}")
                pen = "L"
        return "".join(parts)

    return Chart(
        name,
        [
            (run, path(line), [(step, value) for step, value in line if math.isfinite(value)])
            for run, line in lines.items()
        ],
        [(x(tick), f"{tick:.4g}") for tick in ticks(0, last, 4)],
        [(y(tick), f"{tick:.3g}") for tick in ticks(low, high, 4)],
        last,
        x(start) if start is not None and start <= last else None,
    )


def ticks(low: float, high: float, count: int) -> list[float]:
    """Returns round numbers from low to high, about `count` of them."""
    span = 1e-9 * (high - low)
    values = MaxNLocator(count, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(value) for value in values if low - span <= value <= high + span]


def thinned(line: Line) -> Line:
    """Returns at most MOST_POINTS evenly spaced points of a line, the last one among them."""
    stride = math.ceil(len(line) / MOST_POINTS)
    return line[(len(line) - 1) % stride :: stride]


def save_curves(path: pathlib.Path, runs: Mapping[str, Mapping[str, Line]], names: Sequence[str]) -> None:
    """Writes the curves as PATH.png and PATH.pdf: a small chart for each name, a line for each run."""
    columns = min(len(names), 4)
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(2.2 * columns, 1.6 * rows + 0.2), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    styles = ("-", "--", ":", "-.")
    for axis, name in zip(axes, names, strict=False):
        for number, (run, curves) in enumerate(runs.items()):
            if curves.get(name):
                color, style = COLORS[number % len(COLORS)], styles[number % len(styles)]
                axis.plot(*zip(*curves[name], strict=True), color=color, linestyle=style, linewidth=1, label=run)
        axis.set_title(name.removeprefix("term/").replace("_", " "), fontsize=8)
        axis.tick_params(labelsize=6)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    if len(runs) > 1:
        axes[0].legend(fontsize=6, frameon=False)
    for suffix in (".png", ".pdf"):
        save_figure(figure, path.with_suffix(suffix))
