"""Draw ablations: figures against one setting, and against the strength."""

import itertools
import textwrap
import typing
from collections.abc import Sequence

from revelio_jax.benchmark.ablations import (
    AXES,
    EFFECT,
    RETENTION,
    WORST,
    Line,
    Point,
    Value,
    at_strength,
    intervals,
    values,
)
from revelio_jax.plot_style import STYLE

if typing.TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {EFFECT: "Effect", RETENTION: "Retention, mean", WORST: "Worst, relative to the plain pipeline"}
ORDERED = ("site", "expansion", "k", "steps", "batch_size", "learning_rate")  # settings whose points a line joins
SPREAD = 0.36  # of the distance of two values: the width over which the points of one value are spread
MARKERS = "os^Dv*"


def draw(lines: Sequence[Line], axis: str) -> "Figure":
    """Draw the figures of lines at their chosen strengths, with 95 % intervals.

    The title has the settings that all lines share. If the lines differ in their tasks alone, there is one row of
    panels and a color per task. Otherwise there is a row per task, and a color per value of the settings that differ.
    """
    import matplotlib
    from matplotlib.figure import Figure

    names = list(lines[0].settings)
    differing = [name for name in names if len({line.settings[name] for line in lines}) > 1]
    tasks = list(dict.fromkeys(line.task for line in lines))
    rows = (
        [(task, [line for line in lines if line.task == task]) for task in tasks] if differing else [("", list(lines))]
    )

    def label_of(line: Line) -> str:
        return ", ".join(line.settings[name] for name in differing) if differing else line.task

    labels = list(dict.fromkeys(map(label_of, lines)))
    points = [point for line in lines for point in line.points]
    shown = values(points, axis)
    prefix = _prefix(shown)
    ticks = ["unknown" if each is None else f"{each:g}" if not isinstance(each, str) else each for each in shown]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.9 + 2.4 * len(rows)), dpi=200, layout="constrained")
        shared = [lines[0].settings[name] for name in names if name not in differing]
        _set_title(figure, points[0], ", ".join([*(tasks if len(tasks) == 1 else []), *shared]))
        grid = figure.subplots(len(rows), 3, sharex=True, sharey=True, squeeze=False)
        for axes, (task, own) in zip(grid, rows, strict=True):
            for ax, figure_name in zip(axes, TITLES, strict=True):
                for line in own:
                    number = labels.index(label_of(line))
                    _draw_line(ax, line, axis, figure_name, shown, _offset(number, len(labels)), number)
                ax.set_xticks(range(len(shown)), [tick.removeprefix(prefix) for tick in ticks])
                ax.set_xlim(-0.5, len(shown) - 0.5)
                ax.grid(visible=False, axis="x")
            axes[0].set_ylabel(textwrap.fill(task, 26) if task else "share of images")
        for ax, title in zip(grid[0], TITLES.values(), strict=True):
            ax.set_title(title)
        for ax in grid[-1]:
            ax.set_xlabel(f"{AXES[axis].title} {prefix}".strip())
        _finish(figure, grid, labels)
    return figure


def draw_strengths(points: Sequence[Point]) -> "Figure":
    """Draw the figures of one result against the strength, a row per method and a line per task.

    Lines have the prompts that choose the strength. A large marker has the reported figures of the chosen strength,
    which are of other prompts, so it need not lie on its line.
    """
    import matplotlib
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(point.method for point in points))
    tasks = list(dict.fromkeys(point.task for point in points))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.6 + 2.4 * len(methods)), dpi=200, layout="constrained")
        _set_title(figure, points[0], ", ".join([*(tasks if len(tasks) == 1 else []), points[0].run]))
        grid = figure.subplots(len(methods), 3, sharex=True, sharey=True, squeeze=False)
        for axes, method in zip(grid, methods, strict=True):
            for point in (point for point in points if point.method == method):
                for ax, name in zip(axes, TITLES, strict=True):
                    _draw_strengths(ax, point, name, tasks.index(point.task))
            axes[0].set_ylabel(textwrap.fill(method, 26) if len(methods) > 1 else "share of images")
        for ax, title in zip(grid[0], TITLES.values(), strict=True):
            ax.set_title(title)
        for ax in grid[-1]:
            ax.set_xlabel("strength")
            ax.set_xticks(sorted({row["strength"] for point in points for row in point.rows}))
            ax.xaxis.set_major_formatter("{x:g}")
        _finish(figure, grid, tasks)
    return figure


def _draw_line(
    ax: "Axes", line: Line, axis: str, name: str, shown: Sequence[Value], offset: float, number: int
) -> None:
    found = [
        (shown.index(point.settings[axis]) + offset, figures[name])
        for point in line.points
        if point.chosen and name in (figures := intervals(point.chosen, point.adding))
    ]
    if not found:
        return
    places, mean = [place for place, _ in found], [each["mean"] for _, each in found]
    # The bounds of a bootstrap can lie on the wrong side of the mean by rounding.
    errors = [
        [max(each["mean"] - each["low"], 0) for _, each in found],
        [max(each["high"] - each["mean"], 0) for _, each in found],
    ]
    color, marker = _style(number)
    joined = "-" if axis in ORDERED else ""
    ax.errorbar(places, mean, errors, color=color, linestyle=joined, marker=marker, markersize=3.5, elinewidth=0.8)


def _draw_strengths(ax: "Axes", point: Point, name: str, number: int) -> None:
    color, marker = _style(number)
    found = [
        (row["strength"], each[name])
        for row in point.rows
        if (figures := at_strength(row)) and name in (each := intervals(figures, point.adding))
    ]
    if found:
        strengths = [strength for strength, _ in found]
        mean, low, high = ([each[bound] for _, each in found] for bound in ("mean", "low", "high"))
        ax.fill_between(strengths, low, high, color=color, alpha=0.12, linewidth=0)
        ax.plot(strengths, mean, "-", color=color, marker=marker, markersize=2.5)
    if point.chosen and point.strength is not None and name in (chosen := intervals(point.chosen, point.adding)):
        ax.plot([point.strength], [chosen[name]["mean"]], color=color, marker=marker, markersize=7, linestyle="")


def _set_title(figure: "Figure", point: Point, text: str) -> None:
    """Write the settings that all panels share, and the sample size."""
    counts = " + ".join(str(count) for count in point.prompts.values())
    seeds = "1 seed" if point.seeds == 1 else f"{point.seeds} seeds"
    parts = [text] * bool(text) + [f"{counts} prompts, {seeds}; 95 % intervals"]
    figure.suptitle("; ".join(parts), fontsize=8, x=0.01, ha="left", color="0.4")


def _finish(figure: "Figure", grid: typing.Any, labels: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    for ax in grid.flat:
        ax.set_ylim(-0.03, 1.03)
        ax.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g} %")
    if len(labels) > 1:
        handles = [
            Line2D([], [], color=color, marker=marker, markersize=4, label=label)
            for label, (color, marker) in ((label, _style(number)) for number, label in enumerate(labels))
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4 if max(map(len, labels)) < 30 else 1)


def _style(number: int) -> tuple[typing.Any, str]:
    import matplotlib

    colors = matplotlib.color_sequences["petroff10"]
    return colors[number % len(colors)], MARKERS[number // len(colors) % len(MARKERS)]


def _offset(number: int, count: int) -> float:
    """Return where a line is drawn next to a value, so that the intervals of several lines do not overlap."""
    return 0.0 if count == 1 else SPREAD * (number / (count - 1) - 0.5)


def _prefix(shown: Sequence[Value]) -> str:
    """Return the part up to a dot that all values begin with, for example ``clip.layer.``; "" without one."""
    texts = [each for each in shown if isinstance(each, str)]
    if len(texts) < max(len(shown), 2):
        return ""
    parts = [text.split(".")[:-1] for text in texts]
    shared = list(itertools.takewhile(lambda each: len(set(each)) == 1, zip(*parts, strict=False)))
    return "".join(f"{part}." for part, *_ in shared)
