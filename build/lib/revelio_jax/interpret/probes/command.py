"""How well labels can be read off activations, and off the latents of an SAE, by site and timestep.

    python -m revelio_jax.interpret.probes runs/a runs/b --label category --label style --apart name

Takes folders of runs with an export, whose stores have label columns. For each site, timestep and label two
probes are trained on the activations and on the latents of the same rows: a linear one on means over the
positions, and Diff-C (Revelio) on maps. Accuracy is measured on samples that no probe has seen, with Wilson's
95 % interval. Samples of the same value of the --apart column stay on one side, so that a probe cannot know
an object instead of its label; then the interval counts those values and not samples.

Writes one JSON of all numbers and beside it a PNG: --out, else probes.json in the run's folder, or beside the
first of several. What is there already for the same store, SAE and settings is not trained again, and what is
there of others stays.
"""

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Sequence

from revelio_jax import files
from revelio_jax.cli import RunsParser
from revelio_jax.errors import InputError, require
from revelio_jax.interpret.probes import diff_c, experiment, plot
from revelio_jax.interpret.probes.experiment import PROBES, Row, Settings

# What tells rows apart; the last three are of Diff-C alone.
KEY = (
    "site", "store", "sae", "apart", "seed", "timestep", "label", "probe", "input", "width", "epochs", "rate"
)  # fmt: skip


def main(argv: Sequence[str]) -> None:
    parser = RunsParser("revelio_jax.interpret.probes", __doc__, "JSON")
    add = parser.add_argument
    add("--label", action="append", default=[], help="label column, or several; by default all")
    add("--apart", default="", help="column whose values are not shared by training and test")
    add("--probe", action="append", choices=PROBES, help="by default both")
    add("--width", type=_count, default=diff_c.WIDTH, help="channels of Diff-C, 1024 in the paper")
    add("--epochs", type=_count, default=diff_c.EPOCHS, help="of Diff-C, 30 in the paper")
    add("--rate", type=_positive, default=diff_c.RATE, help="of Diff-C, 1e-4 in the paper")
    add("--memory", type=_positive, default=8.0, help="GiB that the maps of Diff-C may take")
    add("--seed", type=_seed, default=0, help="of the split, and of Diff-C")
    given = parser.parse(argv)
    require("matplotlib", "plot", "revelio_jax.interpret.probes")
    out = files.output_file(given.out, given.runs, "probes.json")
    settings = Settings(given.apart, given.seed, given.width, given.epochs, given.rate)
    tasks = [experiment.open_task(run, tuple(given.label), settings) for run in given.runs]
    rows = _read(out)
    asked = []
    for task in tasks:
        kinds = given.probe or PROBES
        if not task.grid and "diff_c" in kinds:
            print(f"{task.run}: {task.site.name} has no map, which diff_c needs; left out", file=sys.stderr)
        wanted = task.wanted(settings, kinds)
        missing = [row for row in wanted if key_of(row) not in rows]
        for row in experiment.train(task, settings, missing, given.memory):
            rows[key_of(row)] = {"run": task.run} | row
            _write(out, rows)
        asked += [rows[key] for key in map(key_of, wanted) if key in rows]
    if not asked:
        raise InputError("nothing is left to be probed; see the lines above")
    print(table(asked))
    plot.write(asked, out.with_suffix(".png"))
    print(out.with_suffix(".png"))
    print(out)


def key_of(row: Row) -> tuple:
    """What tells a row apart from all others."""
    return tuple(row.get(name) for name in KEY)


def table(rows: Sequence[Row]) -> str:
    """Accuracies as lines."""
    lines = []
    for row in rows:
        when = "" if row["timestep"] < 0 else f", timestep {row['timestep']}"
        lines.append(
            f"{row['site']}{when}, {row['label']}: {row['probe']} on {row['input']} {row['accuracy']:.3f} "
            f"({row['low']:.3f}-{row['high']:.3f}), the most frequent class {row['majority']:.3f}; "
            f"{row['inference_ms']:.4f} ms a sample"
        )
    return "\n".join(lines)


def _read(out: pathlib.Path) -> dict[tuple, Row]:
    """The rows that are there, by their keys."""
    if not out.is_file():
        return {}
    try:
        return {key_of(row): row for row in json.loads(out.read_text())["rows"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{out} is there, but no result of probes; move it away or name another --out") from error


def _write(out: pathlib.Path, rows: dict[tuple, Row]) -> None:
    with files.replacing(out) as part:
        part.write_text(json.dumps({"rows": list(rows.values())}, indent=1) + "\n")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no count")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 31:
        raise argparse.ArgumentTypeError(f"{text} is no number from 0 to {(1 << 31) - 1}")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return number
