"""Draw the trade-offs of a benchmark: removal against retention, and removal against time."""

import typing

from revelio_jax.benchmark.figures import Figures
from revelio_jax.benchmark.results import TaskResult
from revelio_jax.plot_style import STYLE

if typing.TYPE_CHECKING:
    from matplotlib.figure import Figure


def effect_of(figures: Figures, adding: bool) -> float:
    """Return the share of images without the concept, or with it if it is added."""
    shown = figures["outcome"]["concept"]["mean"]
    return shown if adding else 1 - shown


def draw(result: TaskResult) -> "Figure":
    """Draw one task: a line per method through its strengths, and a large dot for the figures that it reports.

    Lines have the prompts that choose the strength, so a dot need not lie on its line.
    """
    import matplotlib
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(row["method"] for row in result["rows"]))
    colors = matplotlib.color_sequences["petroff10"]
    verb = "added" if result["adding"] else "removed"
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.8), dpi=200, layout="constrained")
        figure.suptitle(f"{result['concept']}, {verb}", fontsize=10, x=0.01, ha="left")
        left, right = figure.subplots(1, 2, sharey=True)
        for number, method in enumerate(methods):
            rows = sorted((row for row in result["rows"] if row["method"] == method), key=lambda row: row["strength"])
            marker = "os^Dv*"[number // len(colors) % 6]
            style: dict[str, typing.Any] = {"color": colors[number % len(colors)], "marker": marker}
            points = [
                (kept["mean"], effect_of(figures, result["adding"]))
                for row in rows
                if (figures := row["choosing"]) and (kept := figures["retention"])
            ]
            if len(points) > 1:
                left.plot(*zip(*points, strict=True), "-", alpha=0.5, markersize=2.5, **style)
            for row in rows:
                if not (figures := row["figures"]):
                    continue
                effect = effect_of(figures, result["adding"])
                label = method  # once per method in the legend
                if kept := figures["retention"]:
                    left.plot([kept["mean"]], [effect], linestyle="", markersize=6, label=label, **style)
                    label = None
                if row["time"]:
                    ratio = row["time"]["ratio"]["median"]
                    right.plot([ratio], [effect], linestyle="", markersize=6, label=label, **style)
        for ax in (left, right):
            ax.set_ylim(-0.03, 1.03)
            ax.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g} %")
        left.set_xlim(-0.03, 1.03)
        left.xaxis.set_major_formatter(lambda x, _: f"{100 * x:g} %")
        left.set_title("against retention")
        left.set_xlabel("retained labels, mean share of images")
        left.set_ylabel(f"concept {verb}, share of images")
        right.set_title("against time" if any(row["time"] for row in result["rows"]) else "against time: not measured")
        right.set_xlabel("time per image / plain pipeline")
        figure.legend(loc="outside right center")
    return figure
