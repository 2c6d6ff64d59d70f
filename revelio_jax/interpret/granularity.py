"""Draw what kind of thing latents know: purity and spread by site and timestep, and of SAEs against neurons.

    python -m revelio_jax.interpret.granularity runs/a runs/b --out granularity.png

Takes folders of runs that python -m revelio_jax.interpret has read: of each the results of its SAE and, where
they are there, of its neurons. Latents that are pure in a label know of it; of those that are not, few
positions speak of texture, many of layout. For every label and measure there are a heatmap of runs over
timesteps, curves, and means over all timesteps, which compare an SAE with an undercomplete autoencoder or
with neurons. All are means over latents with 95 % bootstrap intervals over them; dotted is what chance
would give.
Writes one PNG and beside it a CSV of the same numbers: --out, else granularity.png in the run's folder, or
beside the first of several.
"""

import csv
import dataclasses
import os
import pathlib
import sys
import typing
from collections.abc import Sequence

import numpy as np
import pyarrow

from revelio_jax import folders
from revelio_jax.errors import InputError, reported, require
from revelio_jax.interpret import results
from revelio_jax.interpret.purity import MEASURES, interval
from revelio_jax.interpret.results import Results
from revelio_jax.plot import STYLE

if typing.TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WHOLE = "all"  # strata together
TITLES = {
    "purity": "{label}: share of the most frequent class",
    "entropy": "{label}: entropy of classes, bits",
    "sigma": "{label}: standard deviation of class numbers",
    "spread": "share of the positions on which a latent fires",
}
KINDS = {"standard": "dense", "neurons": "neurons"}  # what is told of a run beside its name
DASHES = {"": ("-", "o"), "neurons": ("--", "s"), "dense": ("-.", "^")}
SHOWN = 10  # timesteps whose numbers fit into a map
FEW = 4  # curves that have their intervals without covering one another
FIELDS = ("run", "site", "sae", "latents", "label", "measure", "stratum")
FIGURES = ("mean", "low", "high", "measured", "chance")


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """FIGURES of a run by label ("" of spread), measure, and stratum or WHOLE; None where there are none.

    ``kind`` is "" of an SAE, else one of KINDS.
    """

    name: str
    kind: str
    facts: dict[str, typing.Any]
    means: dict[tuple[str, str, str], dict[str, float] | None]

    @property
    def strata(self) -> list[str]:
        return [str(value) for value in self.facts["stratum"]["values"]]


def read_runs(folders: Sequence[str]) -> list[Run]:
    """All results of the runs. Raises InputError where a folder has none, or they do not go together."""
    found = [(folder, part) for folder in folders for part in _results(pathlib.Path(folder))]
    names = [part.facts["name"] for _, part in found]
    runs = []
    for folder, part in found:
        kind = KINDS.get(part.facts["sae"]["architecture"], "")
        same = [name for (other, _), name in zip(found, names, strict=True) if other != folder]
        name = folder if part.facts["name"] in same else part.facts["name"]
        runs.append(Run(f"{name}, {kind}" if kind else name, kind, part.facts, _means(part)))
    columns = {run.facts["stratum"]["column"] for run in runs if run.strata}
    if len(columns) > 1:
        raise InputError(
            f"the runs are told apart by {' and by '.join(sorted(columns))}; interpret them alike "
            "(config.interpret.stratum)"
        )
    return runs


def _results(folder: pathlib.Path) -> list[Results]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give folders of runs, as runs/mini_sd")
    places = [folder / "latents", folder / "neurons"]
    there = [place for place in places if (place / "summary.json").is_file()]
    return [results.load(place) for place in there or places[:1]]


def _means(found: Results) -> dict[tuple[str, str, str], dict[str, float] | None]:
    facts, means = found.facts, {}
    strata = [str(value) for value in facts["stratum"]["values"]]
    spread = _column(found.latents, "spread", found.latents["rows"].to_numpy() > 0)
    means["", "spread", WHOLE] = _figures(spread, None)
    shape = facts["latents"], len(strata)
    fires = found.strata["rows"].to_numpy().reshape(shape) > 0
    spread = _column(found.strata, "spread", fires.reshape(-1)).reshape(shape)
    for i, stratum in enumerate(strata):
        means["", "spread", stratum] = _figures(spread[:, i], None)
    for label in facts["labels"]:
        for measure in MEASURES:
            name, chance = f"{label}.{measure}", facts["purity"][label]
            means[label, measure, WHOLE] = _figures(
                _column(found.latents, name), (chance["chance"] or {}).get(measure)
            )
            of_strata = _column(found.strata, name).reshape(shape)
            for i, stratum in enumerate(strata):
                expected = (chance["chance_of_strata"][i] or {}).get(measure)
                means[label, measure, stratum] = _figures(of_strata[:, i], expected)
    return means


def _column(table: pyarrow.Table, name: str, where: np.ndarray | None = None) -> np.ndarray:
    """A column as float64, NaN where it is null or not ``where``."""
    values = table[name].to_numpy().astype(np.float64)
    return values if where is None else np.where(where, values, np.nan)


def _figures(values: np.ndarray, chance: float | None) -> dict[str, float] | None:
    of = interval(values)
    return of and {"mean": of["mean"], "low": of["low"], "high": of["high"], "measured": of["latents"]} | {
        "chance": np.nan if chance is None else chance
    }


def rows(runs: Sequence[Run]) -> list[dict[str, typing.Any]]:
    """All numbers, a row each, for the CSV; fields are FIELDS and FIGURES."""
    found = []
    for run in runs:
        of_run = {"run": run.name, "site": run.facts["site"], "latents": run.facts["latents"]}
        of_run["sae"] = run.facts["sae"]["architecture"]
        for (label, measure, stratum), figures in run.means.items():
            if figures:
                what = {"label": label, "measure": measure, "stratum": stratum}
                figures = {name: "" if np.isnan(value) else value for name, value in figures.items()}
                found.append(of_run | what | figures)
    return found


def draw(runs: Sequence[Run], panels: Sequence[tuple[str, str]]) -> "Figure":
    """A row of panels for each label and measure that ``panels`` names; a colour is a site, a dash a kind."""
    import matplotlib
    from matplotlib.figure import Figure

    colours = matplotlib.color_sequences["petroff10"]
    places = list(dict.fromkeys(_place(run, runs) for run in runs))
    runs = sorted(runs, key=lambda run: (places.index(_place(run, runs)), list(DASHES).index(run.kind)))
    looks = [
        {"color": colours[places.index(_place(run, runs)) % 10], "marker": DASHES[run.kind][1]}
        for run in runs
    ]
    strata = _strata(runs)
    widths = [3, 1.7, 2.6] if strata else [1]
    height = 0.75 + 0.19 * max(len(runs), 5)
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(9.6 if strata else 6, height * len(panels) + 0.6), dpi=125, layout="constrained"
        )
        grid = figure.subplots(len(panels), len(widths), squeeze=False, width_ratios=widths)
        for axes, (label, measure) in zip(grid, panels, strict=True):
            whole, title = axes[min(1, len(axes) - 1)], TITLES[measure].format(label=label)
            _draw_whole(whole, runs, looks, (label, measure))
            if strata:
                _draw_map(axes[0], runs, (label, measure), strata)
                _draw_curves(axes[2], runs, looks, (label, measure), strata)
            else:
                whole.set_yticks(range(len(runs)), [_called(run, runs) for run in runs])
            axes[0].set_title(title)
        if strata:
            column = _column_name(runs)
            titles = f"all {column}s", f"by {column}, with 95 % intervals"
            for ax, text in zip(grid[0][1:], titles, strict=True):
                ax.set_title(text)
            for ax in grid[-1][::2]:
                ax.set_xlabel(column)
            figure.legend(handles=_legend(runs, looks), loc="outside lower center", ncols=4)
    return figure


def _draw_map(ax: "Axes", runs, of, strata) -> None:
    values = np.array([[_of(run, of, stratum)["mean"] for stratum in strata] for run in runs])
    image = ax.imshow(values, aspect="auto", cmap="viridis")
    ax.set_yticks(range(len(runs)), [_called(run, runs) for run in runs])
    ax.set_xticks(range(len(strata)), strata)
    ax.grid(False)
    if len(strata) > SHOWN:
        ax.figure.colorbar(image, ax=ax)
        return
    middle = (np.nanmin(values) + np.nanmax(values)) / 2 if np.isfinite(values).any() else 0
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "black" if value > middle else "white"
            ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)


def _draw_curves(ax: "Axes", runs, looks, of, strata) -> None:
    """Where there are many curves, only SAEs have their intervals; those of all are in the CSV."""
    x = np.arange(len(strata))
    kinds = {run.kind for run in runs} if len(runs) <= FEW else {""}
    for run, look in zip(runs, looks, strict=True):
        figures = [_of(run, of, stratum) for stratum in strata]
        mean, low, high, chance = ([f[name] for f in figures] for name in ("mean", "low", "high", "chance"))
        width = 0.8 if run.kind else 1.6
        ax.plot(x, mean, markersize=3, linestyle=DASHES[run.kind][0], linewidth=width, **look)
        if run.kind in kinds:
            ax.fill_between(x, low, high, color=look["color"], alpha=0.25, linewidth=0)
        ax.plot(x, chance, color="0.5", linestyle=":", linewidth=0.8)
    ax.set_xticks(x, strata)
    ax.margins(y=0.08)


def _draw_whole(ax: "Axes", runs, looks, of) -> None:
    for y, (run, look) in enumerate(zip(runs, looks, strict=True)):
        figures = _of(run, of, WHOLE)
        mean, chance = figures["mean"], figures["chance"]
        error = [[mean - figures["low"]], [figures["high"] - mean]]
        ax.errorbar([mean], [y], xerr=error, linestyle="", markersize=4, capsize=2, **look)
        ax.plot([chance, chance], [y - 0.5, y + 0.5], color="0.5", linestyle=":")
    ax.set_yticks(range(len(runs)), [""] * len(runs))
    ax.set_ylim(len(runs) - 0.5, -0.5)


def _legend(runs, looks) -> list[typing.Any]:
    """Kinds, with how they are drawn, and chance; colours are told by the names beside the maps' rows."""
    from matplotlib.lines import Line2D

    shown = [kind for kind in DASHES if kind in {run.kind for run in runs}]
    lines = [
        Line2D([], [], color="0.25", linestyle=DASHES[kind][0], marker=DASHES[kind][1], markersize=4)
        for kind in shown
    ]
    for line, kind in zip(lines, shown, strict=True):
        line.set_label(kind or "SAE")
    return [*lines, Line2D([], [], color="0.5", linestyle=":", label="by chance")]


def _place(run: Run, runs: Sequence[Run]) -> str:
    """What has one colour: a site, or, where SAEs share one, the run."""
    site = run.facts["site"]
    alone = sum((other.facts["site"], other.kind) == (site, run.kind) for other in runs) == 1
    return site if alone else run.name


def _of(run: Run, of: tuple[str, str], stratum: str) -> dict[str, float]:
    return run.means.get((*of, stratum)) or dict.fromkeys(FIGURES, np.nan)


def _called(run: Run, runs: Sequence[Run]) -> str:
    """The site, where it tells the runs of a kind apart; else the name with it."""
    site = run.facts["site"]
    alone = sum((other.facts["site"], other.kind) == (site, run.kind) for other in runs) == 1
    if alone:
        return f"{site}, {run.kind}" if run.kind else site
    return f"{run.name}: {site}"


def _strata(runs: Sequence[Run]) -> list[str]:
    """All strata, in order of their numbers where they are such."""
    found = list(dict.fromkeys(stratum for run in runs for stratum in run.strata))
    return sorted(found, key=float) if all(_is_number(stratum) for stratum in found) else sorted(found)


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _column_name(runs: Sequence[Run]) -> str:
    return next(run.facts["stratum"]["column"] for run in runs if run.strata)


def panels_of(runs: Sequence[Run], labels: Sequence[str], measures: Sequence[str]) -> list[tuple[str, str]]:
    """Labels, all that there are where none is named, by measures; the spread is of no label."""
    there = dict.fromkeys(label for run in runs for label in run.facts["labels"])
    for label in labels:
        if label not in there:
            raise InputError(
                f"--label is {label!r}; the runs were interpreted with {', '.join(there) or 'none'}"
            )
    panels = [(label, measure) for label in labels or there for measure in measures if measure != "spread"]
    return panels + [("", "spread")] * ("spread" in measures)


def table(runs: Sequence[Run]) -> str:
    """Purity of every label and the spread of all runs, as lines."""
    lines = []
    labels = dict.fromkeys(label for run in runs for label in run.facts["labels"])
    width = max(len(run.name) for run in runs)
    for label, measure in [*((label, "purity") for label in labels), ("", "spread")]:
        lines.append(TITLES[measure].format(label=label))
        for run in runs:
            f = run.means.get((label, measure, WHOLE))
            shown = "{mean:.3f} ({low:.3f}-{high:.3f})".format(**f) if f else "none has enough samples"
            chance = f", by chance {f['chance']:.3f}" if f and np.isfinite(f["chance"]) else ""
            lines.append(f"  {run.name:{width}}  {run.facts['site']}  {shown}{chance}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    parser = folders.Parser("revelio_jax.interpret.granularity", __doc__, "PNG")
    parser.add_argument("--label", action="append", default=[], help="that is drawn; by default all")
    parser.add_argument("--measure", action="append", choices=TITLES, help="that is drawn; by default all")
    arguments = parser.parse_args(argv)
    require("matplotlib", "plot", "revelio_jax.interpret.granularity")
    runs = read_runs(arguments.runs)
    panels = panels_of(runs, arguments.label, arguments.measure or tuple(TITLES))
    out = folders.out_of(arguments.out, arguments.runs, "granularity.png")
    part = out.with_suffix(".part")
    draw(runs, panels).savefig(part, format="png")
    os.replace(part, out)
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, (*FIELDS, *FIGURES))
        writer.writeheader()
        writer.writerows(rows(runs))
    os.replace(part, out.with_suffix(".csv"))
    print(table(runs))
    print(out)


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
