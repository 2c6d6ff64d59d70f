"""How well labels can be read off activations, and off the latents of an SAE, by site and timestep.

    python -m revelio_jax.interpret.probes runs/a runs/b --label category --label style --apart name

Takes folders of runs with an export, whose stores have label columns. For each site, timestep and label two
probes are trained on the activations and on the latents of the same rows: a linear one on means over the
positions, and Diff-C (Revelio) on maps. Accuracy is measured on samples that no probe has seen, with Wilson's
95 % interval. Samples of the same value of the --apart column stay on one side, so that a probe cannot know
an object instead of its label; then the interval counts those values and not samples.

Writes one JSON of all numbers and beside it a PNG: --out, else probes.json in the run's folder, or beside the
first of several. What is there already for the same store, SAE and settings is not trained again.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import time
import typing
from collections.abc import Callable, Sequence

import jax
import numpy as np

from revelio_jax.command import parse
from revelio_jax.config import Config
from revelio_jax.errors import InputError, reported, require
from revelio_jax.interpret import __main__ as interpret
from revelio_jax.interpret import diff_c, features, layout, linear, probes_plot, purity
from revelio_jax.interpret.dictionary import Dictionary
from revelio_jax.interpret.features import Means
from revelio_jax.interpret.purity import Label
from revelio_jax.interpret.split import LEAST, Split, split, wilson
from revelio_jax.store import Site, Store

PROBES = ("linear", "diff_c")
INPUTS = ("activations", "latents")
TIMED = 64  # samples that are classified together where inference is timed
REPEATS = 9

Row = dict[str, typing.Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a result beside the store and the SAE."""

    apart: str
    seed: int
    width: int
    epochs: int
    rate: float


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A run, the sites and samples that it is probed on, and what was found in the past."""

    run: str
    config: Config
    store: Store
    site: Site
    latents: Dictionary
    labels: list[Label]
    splits: dict[str, Split]
    timesteps: list[int]
    grid: tuple[int, int] | None

    @property
    def identity(self) -> Row:
        return {"site": self.site.name, "store": self.store.fingerprint, "sae": self.latents.sha256}


def open_task(run: str, wanted: tuple[str, ...], settings: Settings) -> Task:
    """Everything that does not fit raises InputError, before anything is trained."""
    if not pathlib.Path(run, "config.json").is_file():
        raise InputError(f"{run} has no config.json; give folders of runs, as runs/mini_sd")
    config, _ = parse(["revelio_jax.interpret.probes", f"--config={pathlib.Path(run, 'config.json')}"], "")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, run=run))
    store, site, latents = interpret.opened(config)
    table = store.table()
    groups = np.arange(table.num_rows)
    if settings.apart:
        if settings.apart not in table.column_names:
            raise InputError(
                f"--apart is {settings.apart!r}; the samples of {store.location} have the columns "
                f"{', '.join(table.column_names)}"
            )
        groups = np.unique(
            table[settings.apart].to_numpy(zero_copy_only=False).astype(str), return_inverse=True
        )[1]
    if missing := [name for name in wanted if name not in table.column_names]:
        raise InputError(
            f"--label is {missing[0]!r}; the samples of {store.location} have the columns "
            f"{', '.join(table.column_names)}"
        )
    skipped = store.manifest["sites"][site.name].get("skipped", [])
    labels, splits = [], {}
    for label in purity.read_labels(table, wanted):
        classes = label.of_sample.copy()
        classes[skipped] = -1
        if found := split(classes, groups, settings.seed):
            labels.append(label)
            splits[label.name] = found
        elif wanted:
            raise InputError(
                f"--label is {label.name!r}, of which fewer than two classes have {LEAST} "
                f"{f'values of {settings.apart}' if settings.apart else 'samples'}, which a probe needs"
            )
    if not labels:
        raise InputError(f"{run}: the samples of {store.location} have no label that a probe could be given")
    positions, timesteps = layout.survey(site)
    grid = layout.make_cells(site.name, store, positions, positions).grid
    return Task(run, config, store, site, latents, labels, splits, timesteps, grid)


def probe(task: Task, settings: Settings, kinds: Sequence[str], memory: float, known: Callable[[Row], bool]):
    """Train what is not ``known`` and yield a row of each; see :func:`measured`."""
    batch_size, wanted = task.config.interpret.batch_size, []
    for timestep in task.timesteps:
        for label in task.labels:
            for kind in kinds:
                for of in INPUTS:
                    row = task.identity | {
                        "timestep": timestep,
                        "label": label.name,
                        "probe": kind,
                        "input": of,
                    }
                    if not known(row):
                        wanted.append((row, label))
    if any(row["probe"] == "linear" for row, _ in wanted):
        means = features.means(
            task.site, task.latents, task.store.manifest["samples"], task.timesteps, batch_size
        )
        for row, label in wanted:
            if row["probe"] == "linear":
                yield row | _linear(task, label, means, row)
        del means
    for timestep in task.timesteps:
        for of in INPUTS:
            cells = [
                (row, label)
                for row, label in wanted
                if (row["probe"], row["timestep"], row["input"]) == ("diff_c", timestep, of)
            ]
            if cells:
                yield from _maps(task, settings, cells, timestep, of, memory)


def _linear(task: Task, label: Label, means: Means, row: Row) -> Row:
    parts = task.splits[label.name]
    timestep, of_latents = row["timestep"], row["input"] == "latents"
    classes, numbers = _numbered(label, parts)
    train, validation, test = (
        (means.at(timestep, part, of_latents), numbers[part])
        for part in (parts.train, parts.validation, parts.test)
    )
    started = time.perf_counter()
    model = linear.train(*train, validation, classes)
    trained = {"seconds": time.perf_counter() - started, "parameters": linear.parameters(model)}
    trained |= {"strength": model.strength}
    return trained | measured(lambda x: linear.logits(model, x), *test, parts, classes)


def _maps(task: Task, settings: Settings, cells, timestep: int, of: str, memory: float):
    """Diff-C of every label, on maps that are read once."""
    numbers = [task.splits[label.name] for _, label in cells]
    samples = np.unique(np.concatenate([np.concatenate([p.train, p.validation, p.test]) for p in numbers]))
    depth = task.latents.latents if of == "latents" else task.site.d
    gib = 4 * len(samples) * np.prod(task.grid) * depth / 2**30
    if gib > memory:
        print(
            f"{task.run}, timestep {timestep}: maps of {of} take {gib:.1f} GiB, but --memory is {memory:g}; "
            "diff_c leaves them out",
            file=sys.stderr,
        )
        return
    latents = task.latents if of == "latents" else None
    maps = features.maps(task.site, latents, timestep, task.grid, samples, task.config.interpret.batch_size)
    for (row, label), parts in zip(cells, numbers, strict=True):
        classes, numbered = _numbered(label, parts)
        seen = np.sort(np.concatenate([parts.train, parts.validation]))
        started = time.perf_counter()
        model = diff_c.train(
            maps[np.searchsorted(samples, seen)],
            numbered[seen],
            classes,
            settings.width,
            settings.epochs,
            settings.rate,
            settings.seed,
        )
        trained = {"seconds": time.perf_counter() - started, "parameters": diff_c.parameters(model)}
        test = maps[np.searchsorted(samples, parts.test)], numbered[parts.test]
        yield row | trained | measured(lambda x, model=model: diff_c.logits(model, x), *test, parts, classes)


def _numbered(label: Label, parts: Split) -> tuple[int, np.ndarray]:
    """How many classes are probed, and the number of each sample's among them."""
    kept = np.unique(label.of_sample[np.concatenate([parts.train, parts.validation, parts.test])])
    return len(kept), np.searchsorted(kept, label.of_sample).astype(np.int32)


def measured(
    logits: Callable[[np.ndarray], jax.Array], x: np.ndarray, class_N: np.ndarray, parts: Split, classes: int
) -> Row:
    """Accuracy on the test, and how long the probe takes for a sample, in ms, of TIMED together."""
    said = np.concatenate([np.asarray(logits(x[i : i + TIMED]).argmax(-1)) for i in range(0, len(x), TIMED)])
    accuracy = float((said == class_N).mean())
    low, high = wilson(accuracy, parts.groups)
    some = x[:TIMED]
    jax.block_until_ready(logits(some))
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(logits(some))
        seconds.append(time.perf_counter() - started)
    return {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "chance": 1 / classes,
        "majority": float(np.bincount(class_N).max() / len(class_N)),
        "classes": classes,
        "trained_on": len(parts.train) + len(parts.validation),
        "tested_on": len(class_N),
        "groups": parts.groups,
        "inference_ms": 1e3 * statistics.median(seconds) / len(some),
        "timed_together": len(some),
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise InputError(f"{message}; see python -m revelio_jax.interpret.probes --help")


def main(argv: Sequence[str]) -> None:
    parser = _Parser(
        "python -m revelio_jax.interpret.probes",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", help="folders of runs")
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        help="label column; may be given several times; by default all",
    )
    parser.add_argument("--apart", default="", help="column whose values are not shared by training and test")
    parser.add_argument("--probe", action="append", choices=PROBES, help="by default both")
    parser.add_argument(
        "--width", type=_count, default=diff_c.WIDTH, help="channels of Diff-C, 1024 in the paper"
    )
    parser.add_argument("--epochs", type=_count, default=diff_c.EPOCHS, help="of Diff-C, 30 in the paper")
    parser.add_argument("--rate", type=float, default=diff_c.RATE, help="of Diff-C, 1e-4 in the paper")
    parser.add_argument("--memory", type=float, default=4.0, help="GiB that the maps of Diff-C may take")
    parser.add_argument("--seed", type=int, default=0, help="of the split, and of Diff-C")
    parser.add_argument("--out", help="JSON to write", type=pathlib.Path)
    given = parser.parse_args(argv)
    require("matplotlib", "plot", "revelio_jax.interpret.probes")
    first = pathlib.Path(given.runs[0])
    out = given.out or (first if len(given.runs) == 1 else first.absolute().parent) / "probes.json"
    if out.suffix != ".json" or out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out is {out}; it must be a .json in a folder that is there")
    settings = Settings(given.apart, given.seed, given.width, given.epochs, given.rate)
    tasks = [open_task(run, tuple(given.label), settings) for run in given.runs]
    kinds = tuple(given.probe or PROBES)
    rows = _read(out, settings)

    def keep() -> None:
        part = out.with_suffix(".part")
        part.write_text(json.dumps({"settings": dataclasses.asdict(settings), "rows": rows}, indent=1) + "\n")
        os.replace(part, out)

    names = "site", "store", "sae", "timestep", "label", "probe", "input"
    for task in tasks:
        known = {tuple(row[name] for name in names) for row in rows}
        possible = kinds if task.grid else tuple(kind for kind in kinds if kind == "linear")
        if possible != kinds:
            print(f"{task.run}: {task.site.name} has no map, which diff_c needs; left out", file=sys.stderr)
        for row in probe(
            task, settings, possible, given.memory, lambda r, known=known: tuple(r[n] for n in names) in known
        ):
            rows.append({"run": task.run} | row)
            keep()
    asked = [
        row
        for row in rows
        for task in tasks
        if all(row[name] == value for name, value in task.identity.items())
        and row["probe"] in kinds
        and row["label"] in {label.name for label in task.labels}
    ]
    keep()
    print(table(asked))
    probes_plot.write(asked, out.with_suffix(".png"))
    print(out.with_suffix(".png"))
    print(out)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no count")
    return int(text)


def _read(out: pathlib.Path, settings: Settings) -> list[Row]:
    """The rows that are there, of the same settings; [] where there are none."""
    if not out.is_file():
        return []
    try:
        found = json.loads(out.read_text())
        return found["rows"] if found["settings"] == dataclasses.asdict(settings) else []
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{out} is there, but no result of probes; move it away or name another --out"
        ) from error


def table(rows: Sequence[Row]) -> str:
    """Accuracies as lines."""
    lines = []
    for row in rows:
        when = "" if row["timestep"] < 0 else f", timestep {row['timestep']}"
        lines.append(
            f"{row['site']}{when}, {row['label']}: {row['probe']} on {row['input']} {row['accuracy']:.3f} "
            f"({row['low']:.3f}-{row['high']:.3f}), by chance {row['chance']:.3f}; "
            f"{row['inference_ms']:.4f} ms a sample"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
