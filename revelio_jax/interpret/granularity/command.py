"""Plot purity and spread of latents by hook point and timestep, and of SAEs against neurons.

    revelio granularity runs/a runs/b --out granularity.png

The arguments are run folders with results of revelio interpret. Results of neurons and of a random dictionary are also
plotted if they exist. Pure latents encode the label. For other latents, a small spread suggests texture and a large
spread layout.

Each label and measure has a heat map of runs by timestep, curves, and means over all timesteps. The means compare an
SAE with an undercomplete autoencoder, with neurons or with a random dictionary. All values are means over latents with
95 % bootstrap intervals. Dotted lines are the values of random samples.

The command writes a PNG file, and a CSV file of the same numbers next to it. The default of --out is granularity.png in
the run folder; for several runs, in the parent folder of the first.
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
    """Return the (label, measure) of each panel, by default for all labels. The spread has the label "".

    Raise InputError for a label that no run has.
    """
    existing = dict.fromkeys(label for run in runs for label in run.summary["labels"])
    for label in labels:
        if label not in existing:
            raise InputError(f"--label is {label!r}; the labels of the runs are {', '.join(existing) or 'none'}")
    panels = [(label, measure) for label in labels or existing for measure in measures if measure != "spread"]
    return panels + [("", "spread")] * ("spread" in measures)


def table(runs: Sequence[RunPurity], panels: Sequence[tuple[str, str]]) -> str:
    """Return the means over all strata as lines of text."""
    lines = []
    width = max(len(run.name) for run in runs)
    for label, measure in panels:
        lines.append(TITLES[measure].format(label=label))
        for run in runs:
            f = run.means.get((label, measure, WHOLE))
            missing = "label not measured" if label and label not in run.summary["labels"] else "too few samples"
            shown = "{mean:.3f} ({low:.3f}-{high:.3f})".format(**f) if f else missing
            chance = f", chance {f['chance']:.3f}" if f and np.isfinite(f["chance"]) else ""
            lines.append(f"  {run.name:{width}}  {run.summary['site']}  {shown}{chance}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Run ``revelio granularity`` with the arguments ``argv``."""
    parser = RunsParser("revelio_jax.interpret.granularity", __doc__, "PNG")
    parser.add_argument("--label", action="append", default=[], help="label to plot; may be repeated (default: all)")
    parser.add_argument(
        "--measure", action="append", choices=TITLES, help="measure to plot; may be repeated (default: all)"
    )
    arguments = parser.parse(argv)
    require("matplotlib", "plot", "revelio granularity")
    runs = read_runs(arguments.runs)
    panels = panels_of(runs, arguments.label, arguments.measure or tuple(TITLES))
    out = files.output_file(arguments.out, arguments.runs, "granularity.png")
    with files.replacing(out) as part:
        plot.draw(runs, panels).savefig(part, format="png")
    with files.replacing(out.with_suffix(".csv")) as part, part.open("w", newline="") as file:
        columns: list[str] = [*FIELDS, *FIGURES]
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows(runs))
    print(table(runs, panels))
    print(out)
