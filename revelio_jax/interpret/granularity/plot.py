"""Draw the granularity plot: a heat map, means over all strata, and curves for each label and measure."""

import typing
from collections.abc import Sequence

import numpy as np

from revelio_jax.interpret.granularity.runs import FIGURES, WHOLE, RunPurity
from revelio_jax.plot_style import STYLE

if typing.TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "purity": "{label}: share of the most frequent class",
    "entropy": "{label}: entropy of classes, bits",
    "sigma": "{label}: standard deviation of class numbers",
    "spread": "share of the positions on which a latent fires",
}
DASHES: dict[str, tuple[typing.Any, str]] = {
    "": ("-", "o"), "neurons": ("--", "s"), "dense": ("-.", "^"), "random": ((0, (1, 3)), "v")
}  # fmt: skip
SHOWN = 10  # largest number of timesteps whose values are printed in a heat map
FEW = 4  # largest number of curves that all have intervals


def draw(runs: Sequence[RunPurity], panels: Sequence[tuple[str, str]]) -> "Figure":
    """Return a figure with one row of plots for each (label, measure) of ``panels``.

    Colors show hook points, dashes show kinds.
    """
    import matplotlib
    from matplotlib.figure import Figure

    colors = matplotlib.color_sequences["petroff10"]
    groups = list(dict.fromkeys(_color_group(run, runs) for run in runs))
    runs = sorted(runs, key=lambda run: (groups.index(_color_group(run, runs)), list(DASHES).index(run.kind)))
    styles = [
        {"color": colors[groups.index(_color_group(run, runs)) % 10], "marker": DASHES[run.kind][1]} for run in runs
    ]
    strata = _strata(runs)
    widths = [3, 1.7, 2.6] if strata else [1]
    height = 0.75 + 0.19 * max(len(runs), 5)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6 if strata else 6, height * len(panels) + 0.6), dpi=125, layout="constrained")
        grid = figure.subplots(len(panels), len(widths), squeeze=False, width_ratios=widths)
        for axes, (label, measure) in zip(grid, panels, strict=True):
            whole, title = axes[min(1, len(axes) - 1)], TITLES[measure].format(label=label)
            _draw_whole(whole, runs, styles, (label, measure))
            if strata:
                _draw_map(axes[0], runs, (label, measure), strata)
                _draw_curves(axes[2], runs, styles, (label, measure), strata)
            else:
                whole.set_yticks(range(len(runs)), [run_label(run, runs) for run in runs])
            axes[0].set_title(title)
        if strata:
            column = _column_name(runs)
            limited_to = "" if len(runs) <= FEW else " of SAEs"
            titles = f"all {column}s", f"by {column}, with 95 % intervals{limited_to}"
            for ax, text in zip(grid[0][1:], titles, strict=True):
                ax.set_title(text)
            for ax in grid[-1][::2]:
                ax.set_xlabel(column)
            figure.legend(handles=_legend(runs), loc="outside lower center", ncols=4)
    return figure


def _draw_map(ax: "Axes", runs, panel, strata) -> None:
    values = np.array([[_figures_of(run, panel, stratum)["mean"] for stratum in strata] for run in runs])
    image = ax.imshow(values, aspect="auto", cmap="viridis")
    ax.set_yticks(range(len(runs)), [run_label(run, runs) for run in runs])
    ax.set_xticks(range(len(strata)), strata)
    ax.grid(False)
    if len(strata) > SHOWN:
        ax.figure.colorbar(image, ax=ax)
        return
    middle = (np.nanmin(values) + np.nanmax(values)) / 2 if np.isfinite(values).any() else 0
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "black" if value > middle else "white"
            ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)


def _draw_curves(ax: "Axes", runs, styles, panel, strata) -> None:
    """Draw curves over strata. With many curves, only curves of SAEs have intervals; the CSV file has all intervals."""
    x = np.arange(len(strata))
    kinds = {run.kind for run in runs} if len(runs) <= FEW else {""}
    for run, style in zip(runs, styles, strict=True):
        figures = [_figures_of(run, panel, stratum) for stratum in strata]
        mean, low, high, chance = ([f[name] for f in figures] for name in ("mean", "low", "high", "chance"))
        width = 0.8 if run.kind else 1.6
        ax.plot(x, mean, markersize=3, linestyle=DASHES[run.kind][0], linewidth=width, **style)
        if run.kind in kinds:
            ax.fill_between(x, low, high, color=style["color"], alpha=0.25, linewidth=0)
        ax.plot(x, chance, color="0.5", linestyle=":", linewidth=0.8)
    ax.set_xticks(x, strata)
    ax.margins(y=0.08)


def _draw_whole(ax: "Axes", runs, styles, panel) -> None:
    for y, (run, style) in enumerate(zip(runs, styles, strict=True)):
        figures = _figures_of(run, panel, WHOLE)
        mean, chance = figures["mean"], figures["chance"]
        error = [[mean - figures["low"]], [figures["high"] - mean]]
        ax.errorbar([mean], [y], xerr=error, linestyle="", markersize=4, capsize=2, **style)
        ax.plot([chance, chance], [y - 0.5, y + 0.5], color="0.5", linestyle=":")
    ax.set_yticks(range(len(runs)), [""] * len(runs))
    ax.set_ylim(len(runs) - 0.5, -0.5)


def _legend(runs) -> list[typing.Any]:
    """Return legend entries for the kinds and for chance. The colors are explained by the rows of the heat map."""
    from matplotlib.lines import Line2D

    shown = [kind for kind in DASHES if kind in {run.kind for run in runs}]
    lines = [
        Line2D([], [], color="0.25", linestyle=DASHES[kind][0], marker=DASHES[kind][1], markersize=4) for kind in shown
    ]
    for line, kind in zip(lines, shown, strict=True):
        line.set_label(kind or "SAE")
    return [*lines, Line2D([], [], color="0.5", linestyle=":", label="random samples")]


def _color_group(run: RunPurity, runs: Sequence[RunPurity]) -> str:
    """Return the group that shares a color: the hook point, or the run if several SAEs share a hook point."""
    site = run.summary["site"]
    is_unique = sum((other.summary["site"], other.kind) == (site, run.kind) for other in runs) == 1
    return site if is_unique else run.name


def _figures_of(run: RunPurity, panel: tuple[str, str], stratum: str) -> dict[str, float]:
    return run.means.get((*panel, stratum)) or dict.fromkeys(FIGURES, np.nan)


def run_label(run: RunPurity, runs: Sequence[RunPurity]) -> str:
    """Return the hook point if it is unique among runs of the same kind, otherwise run name and hook point."""
    site = run.summary["site"]
    is_unique = sum((other.summary["site"], other.kind) == (site, run.kind) for other in runs) == 1
    if is_unique:
        return f"{site}, {run.kind}" if run.kind else site
    return f"{run.name}: {site}"


def _strata(runs: Sequence[RunPurity]) -> list[str]:
    """Return all strata in ascending order, as numbers if all are integers."""
    strata = list(dict.fromkeys(stratum for run in runs for stratum in run.strata))
    return sorted(strata, key=float) if all(_is_number(stratum) for stratum in strata) else sorted(strata)


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _column_name(runs: Sequence[RunPurity]) -> str:
    return next(run.summary["stratum"]["column"] for run in runs if run.strata)
