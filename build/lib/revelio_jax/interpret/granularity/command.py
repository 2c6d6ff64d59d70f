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
from collections.abc import Sequence

import numpy as np

from revelio_jax import files
from revelio_jax.cli import RunsParser
from revelio_jax.errors import InputError, require
from revelio_jax.interpret.granularity import plot
from revelio_jax.interpret.granularity.plot import TITLES
from revelio_jax.interpret.granularity.runs import FIELDS, FIGURES, WHOLE, RunPurity, read_runs, rows


def panels_of(runs: Sequence[RunPurity], labels: Sequence[str], measures: Sequence[str]) -> list[tuple[str, str]]:
    """Labels, all that there are where none is named, by measures; the spread is of no label."""
    there = dict.fromkeys(label for run in runs for label in run.facts["labels"])
    for label in labels:
        if label not in there:
            raise InputError(f"--label is {label!r}; the runs were interpreted with {', '.join(there) or 'none'}")
    panels = [(label, measure) for label in labels or there for measure in measures if measure != "spread"]
    return panels + [("", "spread")] * ("spread" in measures)


def table(runs: Sequence[RunPurity], panels: Sequence[tuple[str, str]]) -> str:
    """What is drawn, over all strata, as lines."""
    lines = []
    width = max(len(run.name) for run in runs)
    for label, measure in panels:
        lines.append(TITLES[measure].format(label=label))
        for run in runs:
            f = run.means.get((label, measure, WHOLE))
            none = "has no such label" if label and label not in run.facts["labels"] else "too few samples"
            shown = "{mean:.3f} ({low:.3f}-{high:.3f})".format(**f) if f else none
            chance = f", by chance {f['chance']:.3f}" if f and np.isfinite(f["chance"]) else ""
            lines.append(f"  {run.name:{width}}  {run.facts['site']}  {shown}{chance}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    parser = RunsParser("revelio_jax.interpret.granularity", __doc__, "PNG")
    parser.add_argument("--label", action="append", default=[], help="that is drawn; by default all")
    parser.add_argument("--measure", action="append", choices=TITLES, help="that is drawn; by default all")
    arguments = parser.parse(argv)
    require("matplotlib", "plot", "revelio_jax.interpret.granularity")
    runs = read_runs(arguments.runs)
    panels = panels_of(runs, arguments.label, arguments.measure or tuple(TITLES))
    out = files.output_file(arguments.out, arguments.runs, "granularity.png")
    with files.replacing(out) as part:
        plot.draw(runs, panels).savefig(part, format="png")
    with files.replacing(out.with_suffix(".csv")) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, (*FIELDS, *FIGURES))
        writer.writeheader()
        writer.writerows(rows(runs))
    print(table(runs, panels))
    print(out)
