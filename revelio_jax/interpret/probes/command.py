"""Measure how well labels can be predicted from activations and from SAE latents, by hook point and timestep.

    revelio probes runs/a runs/b --label category --label style --apart name

The arguments are run folders with an export; their stores must have label columns. For each hook point, timestep and
label, the command trains probes on the activations and on the latents of the same rows. The linear probe and the sparse
probes read means over the positions, and Diff-C (Revelio, arXiv 2411.16725) reads maps. The accuracy of the linear
probe and Diff-C is measured on held-out samples, with a 95 % Wilson interval. Sparse probes separate each of the 20
most frequent classes from all others by 1, 2, 5, 10 and 50 features. Printed are their AUROC and
balanced accuracy on held-out samples, and the F1 of the best single feature, as means over the classes.

Absorption (arXiv 2409.14507) is the share of the samples of a class on which its main latents are silent because
another latent represents the class there, for example a latent of apples instead of the latent of food. With --finer
COLUMN, a column that divides the classes further, the file also lists the values of the column that are absorbed most.

With --apart COLUMN, samples with the same value in that column are all in the training set or all in the test set. A
probe can then not recognize the object instead of its label. The interval then counts values instead of samples.

The command writes a JSON file with all numbers, and a PNG file next to it. The default of --out is probes.json in the
run folder; for several runs, in the parent folder of the first. Results of the same store, SAE and settings are reused;
other results in the file are kept.
"""

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Sequence

from revelio_jax import files, json_text
from revelio_jax.cli import RunsParser
from revelio_jax.errors import InputError, memory_advice, require
from revelio_jax.interpret.probes import diff_c, experiment, plot
from revelio_jax.interpret.probes.experiment import PROBES, ProbeRow, ProbeSettings

# The fields that identify a row; ``finer`` is set for absorption only, the last three for Diff-C only.
KEY = (
    "site", "store", "sae", "apart", "finer", "seed", "timestep", "label", "probe", "input", "width", "epochs", "rate"
)  # fmt: skip


@memory_advice("lower --memory, or config.interpret.batch_size of the run")
def main(argv: Sequence[str]) -> None:
    """Run ``revelio probes`` with the arguments ``argv``."""
    parser = RunsParser("revelio_jax.interpret.probes", __doc__, "JSON")
    add = parser.add_argument
    add("--label", action="append", default=[], help="label column; may be repeated (default: all label columns)")
    add("--apart", default="", help="sample column; each of its values is in only one of training and test set")
    add(
        "--finer", default="", help="sample column that divides the classes further; absorption is listed by its values"
    )
    add("--probe", action="append", choices=PROBES, help="probe to train; may be repeated (default: all)")
    add("--width", type=_count, default=diff_c.WIDTH, help="channels of Diff-C (default: %(default)s, as in the paper)")
    add("--epochs", type=_count, default=diff_c.EPOCHS, help="epochs of Diff-C (default: %(default)s, as in the paper)")
    add(
        "--rate",
        type=_positive,
        default=diff_c.RATE,
        help="learning rate of Diff-C (default: %(default)s, as in the paper)",
    )
    add(
        "--memory",
        type=_positive,
        default=8.0,
        help="GiB of memory for the maps of Diff-C; larger maps are left out (default: %(default)s)",
    )
    add("--seed", type=_seed, default=0, help="seed of the split and of Diff-C (default: %(default)s)")
    arguments = parser.parse(argv)
    require("matplotlib", "plot", "revelio probes")
    out = files.output_file(arguments.out, arguments.runs, "probes.json")
    settings = ProbeSettings(
        arguments.apart, arguments.seed, arguments.width, arguments.epochs, arguments.rate, arguments.finer
    )
    probed_runs = [experiment.open_run(run, tuple(arguments.label), settings) for run in arguments.runs]
    rows = _read(out)
    requested = []
    for probed_run in probed_runs:
        kinds = arguments.probe or PROBES
        if not probed_run.grid and "diff_c" in kinds:
            print(
                f"{probed_run.run}: the positions of {probed_run.site.name} do not form a map; diff_c is left out",
                file=sys.stderr,
            )
        row_keys = probed_run.row_keys(settings, kinds)
        missing = [row for row in row_keys if key_of(row) not in rows]
        for row in experiment.train(probed_run, settings, missing, arguments.memory):
            rows[key_of(row)] = {"run": probed_run.run} | row
            _write(out, rows)
        requested += [rows[key] for key in map(key_of, row_keys) if key in rows]
    if not requested:
        raise InputError("no probe can be trained with these flags; the messages above give the reasons")
    print(table(requested))
    if drawn := [row for row in requested if "accuracy" in row]:
        plot.write(drawn, out.with_suffix(".png"))
        print(out.with_suffix(".png"))
    print(out)


def key_of(row: ProbeRow) -> tuple:
    """Return the values that identify a row."""
    return tuple(row.get(name) for name in KEY)


def table(rows: Sequence[ProbeRow]) -> str:
    """Return one line of text per row: accuracy with its interval and inference time, or the areas of sparse probes."""
    lines = []
    for row in rows:
        when = "" if row["timestep"] < 0 else f", timestep {row['timestep']}"
        start = f"{row['site']}{when}, {row['label']}: {row['probe']} on {row['input']}"
        if row["probe"] == "sparse":
            shown = [
                f"{title} " + ", ".join(f"k {k} {value:.3f}" for k, value in row[name].items())
                for name, title in (("auroc", "AUROC"), ("balanced_accuracy", "balanced accuracy"))
                if name in row  # earlier versions wrote only the AUROC
            ]
            lines.append(f"{start}: {'; '.join(shown)}; F1 of the best single one {row['best_f1']:.3f}")
            continue
        if row["probe"] == "absorption":
            shares = (row["fraction_absorption"], row["full_absorption"])
            fraction, full = ("not measured" if share is None else f"{share:.3f}" for share in shares)
            lines.append(
                f"{start}: absorbed fraction {fraction}, fully absorbed {full}, {row['measured_classes']} classes"
            )
            continue
        lines.append(
            f"{start} {row['accuracy']:.3f} "
            f"({row['low']:.3f}-{row['high']:.3f}), most frequent class {row['majority']:.3f}; "
            f"{row['inference_ms']:.4f} ms per sample"
        )
    return "\n".join(lines)


def _read(out: pathlib.Path) -> dict[tuple, ProbeRow]:
    """Return the existing rows, by their keys. Raise InputError if the file has another format."""
    if not out.is_file():
        return {}
    try:
        return {key_of(row): row for row in json_text.parse_object(out.read_bytes())["rows"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"--out is {out}, which exists but is not a file of probe results; choose another file"
        ) from error


def _write(out: pathlib.Path, rows: dict[tuple, ProbeRow]) -> None:
    files.write_text(out, json.dumps({"rows": list(rows.values())}, indent=1) + "\n")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 31:
        raise argparse.ArgumentTypeError(f"{text} is not an integer from 0 to {(1 << 31) - 1}")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number
