"""Draw the curves of runs: loss, FVU and dead latents by step, and how often latents fire.

    revelio plot runs/a runs/b --out plot.png

Reads metrics.jsonl and, if it exists, evaluation.json of each run. Writes one PNG. The default of --out is plot.png
in the run folder; for several runs, in the parent folder of the first.

    revelio plot --frontier runs/k=* runs/imported --out frontier.png

--frontier draws every measure of evaluated SAEs against their L0, with a line per architecture, hook point and
dictionary size. It reads evaluation.json and, if they exist, the results of interpret, splice and probes. A CSV file
of the same numbers is written next to the PNG. The default of --out is then frontier.png.
"""

import collections
import dataclasses
import json
import pathlib
import sys
import typing
from collections.abc import Sequence

import numpy as np

from revelio_jax import files
from revelio_jax.cli import RunsParser
from revelio_jax.errors import InputError, report_errors, require
from revelio_jax.evaluation import frontier, measures
from revelio_jax.plot_style import STYLE

if typing.TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = {
    "loss": "Loss",
    "fvu": "FVU of the batch",
    "dead_fraction": "Dead latents",
}  # fields of metrics.jsonl


class Style(typing.TypedDict):
    """The look of a run's curves, and the run's text in the legend."""

    color: typing.Any
    linestyle: str
    label: str


@dataclasses.dataclass(frozen=True)
class Density:
    """The firing densities of a run's latents on held-out rows.

    ``edges`` [bins + 1] are log10 of the share of rows that a latent fires on. ``latents`` [bins] is the share of all
    latents in each bin. ``never`` is the share of latents that never fire.
    """

    edges: np.ndarray
    latents: np.ndarray
    never: float


@dataclasses.dataclass(frozen=True)
class RunCurves:
    """The curves and the firing density of a run.

    ``curves`` has arrays [lines] of the steps and of every field of CURVES. ``density`` is None if the run was not
    evaluated.
    """

    name: str
    curves: dict[str, np.ndarray]
    density: Density | None = None


def read_run(folder: str) -> RunCurves:
    """Read a run from its folder. Raise InputError if the folder or its metrics are missing or malformed."""
    run = pathlib.Path(folder)
    if not run.is_dir():
        raise InputError(f"{folder}: no such folder; pass run folders, for example runs/mini_sd")
    return RunCurves(run.absolute().name, _read_curves(run / "metrics.jsonl"), _read_density(run / "evaluation.json"))


def draw(runs: Sequence[RunCurves]) -> "Figure":
    """Return a figure with the curves and the histogram of every run, one color per run."""
    import matplotlib
    from matplotlib.figure import Figure

    colors = matplotlib.color_sequences["petroff10"]  # distinguishable with color blindness
    styles: list[Style] = [
        {"color": colors[i % 10], "linestyle": ("-", "--", ":")[i // 10 % 3], "label": run.name}
        for i, run in enumerate(runs)
    ]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 5), dpi=200, layout="constrained")
        axes = figure.subplots(2, 2).flat
        for ax, (field, title) in zip(axes, CURVES.items(), strict=False):
            _draw_curves(ax, field, title, runs, styles)
        _draw_density(axes[3], runs, styles)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(runs), 4))
    return figure


def _draw_curves(ax: "Axes", field: str, title: str, runs: Sequence[RunCurves], styles: list[Style]) -> None:
    from matplotlib.ticker import LogLocator

    for run, style in zip(runs, styles, strict=True):
        ax.plot(run.curves["step"], run.curves[field], **style)
    ax.set_title(title)
    ax.set_xlabel("step")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.locator_params(axis="x", nbins=5)
    values = np.concatenate([run.curves[field] for run in runs])
    if field == "dead_fraction":
        ax.set_ylim(0, max(0.01, 1.05 * np.nanmax(values)))
        ax.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g} %")
    elif values.min() > 0 and values.max() > 5 * values.min():
        ax.set_yscale("log", subs=())
        wide = values.max() > 1000 * values.min()
        ax.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")


def _draw_density(ax: "Axes", runs: Sequence[RunCurves], styles: list[Style]) -> None:
    ax.set_title("How often latents fire")
    evaluated = [(run.density, style) for run, style in zip(runs, styles, strict=True) if run.density is not None]
    missing = [run.name for run in runs if run.density is None]
    if missing:
        note = missing[0] + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        ax.set_title(f"not evaluated: {note}", loc="right", fontsize=7, color="0.4")
    if not evaluated:
        ax.set_axis_off()
        return
    lowest = min(density.edges[:-1][density.latents > 0].min(initial=-1) for density, _ in evaluated)
    for density, style in evaluated:
        never = [density.never], [lowest - 1, lowest - 0.75]
        for shares, edges in ((density.latents, density.edges), never):
            ax.stairs(shares, edges, fill=True, alpha=0.24 / len(evaluated), color=style["color"])
            ax.stairs(shares, edges, linewidth=1.2, **style)
    ax.set_xlim(lowest - 1.2, 0.1)
    ax.set_xlabel("share of held-out rows that a latent fires on")
    ticks = np.arange(np.ceil(lowest), 1)
    ax.set_xticks([lowest - 0.875, *ticks], ["never", *(f"$10^{{{tick:.0f}}}$" for tick in ticks)])
    ax.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g} %")
    ax.set_ylabel("latents")


def _read_curves(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    whole = text[: text.rfind("\n") + 1]  # a killed run may leave a partial last line
    lines = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            fields = json.loads(line)  # values may be NaN
            lines.append([float(fields[name]) for name in ("step", *CURVES)])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{path}, line {number} is broken: {type(error).__name__}: {error}") from error
    if not lines:
        raise InputError(f"{path} has no lines; the run has not logged a step yet")
    return dict(zip(("step", *CURVES), np.transpose(lines), strict=True))


def _read_density(path: pathlib.Path) -> Density | None:
    if not path.exists():
        return None
    try:
        evaluation = json.loads(path.read_text())  # values may be NaN
        histogram, never = evaluation["density_histogram"], float(evaluation["dead_fraction"])
        edges, latents = (np.asarray(histogram[name], float) for name in ("log10_edges", "latents"))
        if not (np.isfinite(never) and np.isfinite(edges).all() and np.isfinite(latents).all()):
            raise ValueError("dead_fraction and density_histogram must be finite")
        shares = latents * (1 - never) / max(latents.sum(), 1)
        if len(edges) != len(shares) + 1:
            raise ValueError(f"{len(edges)} edges of {len(shares)} bins")
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} is broken: {type(error).__name__}: {error}") from error
    return Density(edges, shares, never)


def with_unique_names(runs: Sequence[RunCurves], folders: Sequence[str]) -> list[RunCurves]:
    """Return the runs, with the path as the name if several folders have the same name."""
    count = collections.Counter(run.name for run in runs)
    return [
        dataclasses.replace(run, name=folder) if count[run.name] > 1 else run
        for run, folder in zip(runs, folders, strict=True)
    ]


def main(argv: Sequence[str]) -> None:
    parser = RunsParser("revelio_jax.plot", __doc__, "PNG")
    parser.add_argument("--frontier", action="store_true", help="draw the measures of evaluated SAEs against L0")
    arguments = parser.parse(argv)
    require("matplotlib", "plot", "revelio_jax.plot")
    if arguments.frontier:
        draw_frontier(arguments.runs, arguments.out)
        return
    runs = with_unique_names([read_run(folder) for folder in arguments.runs], arguments.runs)
    out = files.output_file(arguments.out, arguments.runs, "plot.png")
    with files.replacing(out) as part:
        draw(runs).savefig(part, format="png")
    print(out)


def draw_frontier(runs: Sequence[str], out: pathlib.Path | None) -> None:
    """Write the plot and the CSV file of the measures of runs. Raise InputError if they are not comparable."""
    saes = [measures.read(run) for run in runs]
    measures.check(saes)
    out = files.output_file(out, runs, "frontier.png")
    with files.replacing(out) as part:
        frontier.draw(saes).savefig(part, format="png")
    files.write_text(out.with_suffix(".csv"), frontier.csv_text(saes))
    print(out)


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
