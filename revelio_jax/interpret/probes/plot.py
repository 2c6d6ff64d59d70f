"""Plot probe results: accuracy by timestep, with one panel per label and SAE."""

import pathlib
import typing
from collections.abc import Sequence

from revelio_jax import files
from revelio_jax.plot_style import STYLE

STYLES = {  # the color is the input, the line style the probe
    ("linear", "activations"): {"color": "#3f90da", "linestyle": "-", "marker": "o"},
    ("linear", "latents"): {"color": "#bd1f01", "linestyle": "-", "marker": "o"},
    ("diff_c", "activations"): {"color": "#3f90da", "linestyle": "--", "marker": "s"},
    ("diff_c", "latents"): {"color": "#bd1f01", "linestyle": "--", "marker": "s"},
}
NAMES = {"linear": "linear", "diff_c": "Diff-C"}


def write(rows: Sequence[dict[str, typing.Any]], path: pathlib.Path) -> None:
    """Plot rows of probe results and write them to ``path`` as PNG in one step."""
    import matplotlib
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(row["label"] for row in rows))
    saes = {row["sae"]: row for row in rows}
    sites = [row["site"] for row in saes.values()]
    timesteps = sorted({row["timestep"] for row in rows})
    with matplotlib.rc_context(STYLE):
        size = (0.6 + 2.6 * max(len(saes), 2), 0.8 + 2.2 * len(labels))
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        grid = figure.subplots(len(labels), len(saes), squeeze=False, sharey="row", sharex=True)
        for axes, label in zip(grid, labels, strict=True):
            for ax, (sae, first_row) in zip(axes, saes.items(), strict=True):
                _draw(ax, [row for row in rows if row["label"] == label and row["sae"] == sae], timesteps)
                name = first_row["site"] if sites.count(first_row["site"]) == 1 else first_row["run"]
                ax.set_title(f"{label}, {name}")
            axes[0].set_ylabel("accuracy")
        for ax in grid[-1]:
            ax.set_xticks(range(len(timesteps)), [str(t) if t >= 0 else "" for t in timesteps])
            ax.set_xlabel("timestep" if timesteps[-1] >= 0 else "")
            ax.set_xlim(-0.5, len(timesteps) - 0.5)
        shown = {name: line for ax in grid.flat for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=3)
        with files.replacing(path) as part:
            figure.savefig(part, format="png")


def _draw(ax, rows, timesteps: list[int]) -> None:
    for i, ((probe, input_name), style) in enumerate(STYLES.items()):
        points = [row for row in rows if (row["probe"], row["input"]) == (probe, input_name)]
        points.sort(key=lambda row: row["timestep"])
        if not points:
            continue
        # Shift the points sideways, so that intervals do not overlap.
        x = [timesteps.index(row["timestep"]) + 0.06 * (i - 1.5) for row in points]
        y = [row["accuracy"] for row in points]
        below = [a - row["low"] for a, row in zip(y, points, strict=True)]
        above = [row["high"] - a for a, row in zip(y, points, strict=True)]
        name = f"{NAMES[probe]} on {input_name}"
        ax.errorbar(x, y, yerr=[below, above], label=name, markersize=3, elinewidth=0.7, **style)
    for row in rows[:1]:
        ax.axhline(row["majority"], color="0.4", linestyle=":", linewidth=0.9, label="most frequent class")
