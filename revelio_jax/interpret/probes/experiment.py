"""Train and evaluate probes: one row of results per hook point, timestep, label, probe and input. JAX."""

import dataclasses
import functools
import pathlib
import statistics
import sys
import time
import typing
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from revelio_jax.cli import parse
from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.interpret.latents import layout, purity, store_pass
from revelio_jax.interpret.latents.dictionary import Dictionary
from revelio_jax.interpret.latents.purity import Label
from revelio_jax.interpret.probes import diff_c, features, linear
from revelio_jax.interpret.probes.features import Means
from revelio_jax.interpret.probes.split import LEAST, Split, split
from revelio_jax.interpret.wilson import wilson
from revelio_jax.store import SiteReader, Store

PROBES = ("linear", "diff_c")
INPUTS = ("activations", "latents")
TIMED = 64  # samples per batch when inference is timed
REPEATS = 9  # timings, of which the median is reported

Row = dict[str, typing.Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that determine a result, besides the store and the SAE."""

    apart: str
    seed: int
    width: int
    epochs: int
    rate: float

    def of(self, probe: str) -> Row:
        """Return the settings that affect a probe."""
        common = {"apart": self.apart, "seed": self.seed}
        return common | ({"width": self.width, "epochs": self.epochs, "rate": self.rate} if probe == "diff_c" else {})


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """The store and the SAE of a run, and the split of the samples for each label.

    ``grid`` is the height and width of the positions, None if they do not form a map.
    """

    run: str
    config: Config
    store: Store
    site: SiteReader
    latents: Dictionary
    labels: dict[str, tuple[Label, Split]]
    timesteps: list[int]
    grid: tuple[int, int] | None

    def wanted(self, settings: Settings, kinds: Sequence[str]) -> list[Row]:
        """Return the identifying fields of each result; Diff-C is left out if there is no map."""
        of_run = {"site": self.site.name, "store": self.store.fingerprint, "sae": self.latents.sha256}
        return [
            of_run | settings.of(kind) | {"timestep": timestep, "label": name, "probe": kind, "input": of}
            for timestep in self.timesteps
            for name in self.labels
            for kind in kinds
            if kind == "linear" or self.grid
            for of in INPUTS
        ]


def open_task(run: str, wanted: tuple[str, ...], settings: Settings) -> Task:
    """Open a run and split its samples for the labels ``wanted``, by default for every label column.

    Raises InputError if the run, a label or the settings are unusable.
    """
    if not pathlib.Path(run, "config.json").is_file():
        raise InputError(f"{run} has no config.json; it must be a run folder, for example runs/mini_sd")
    config, _ = parse(["revelio_jax.interpret.probes", f"--config={pathlib.Path(run, 'config.json')}"], "")
    config = dataclasses.replace(config, run=run)
    store, site, latents = store_pass.open_inputs(config)
    table = store.table()
    for flag, names in (("--label", wanted), ("--apart", (settings.apart,) if settings.apart else ())):
        for name in names:
            if name not in table.column_names:
                raise InputError(
                    f"{flag} is {name!r}; it must be a sample column of {store.location}: "
                    f"{', '.join(table.column_names)}"
                )
    groups = np.arange(table.num_rows)
    if settings.apart:
        values = table[settings.apart].to_numpy(zero_copy_only=False).astype(str)
        groups = np.unique(values, return_inverse=True)[1]
    each = f"values of {settings.apart}" if settings.apart else "samples"
    skipped = store.manifest["sites"][site.name].get("skipped", [])
    labels = {}
    for label in purity.read_labels(table, wanted):
        classes = label.of_sample.copy()
        classes[skipped] = -1
        parts = split(classes, groups, settings.seed)
        if parts is None and wanted:
            raise InputError(
                f"--label is {label.name!r}; it must have at least two classes with {LEAST} {each} or more"
            )
        kept = 0 if parts is None else len(np.unique(classes[parts.all]))
        if left_out := len(np.unique(classes[classes >= 0])) - kept:
            print(
                f"{run}: {left_out} classes of {label.name} are left out: they have fewer than {LEAST} {each}",
                file=sys.stderr,
            )
        if parts:
            labels[label.name] = label, parts
    if not labels:
        raise InputError(f"{run}: the samples of {store.location} have no label column that a probe can be trained on")
    positions, timesteps = layout.positions_and_timesteps(site)
    grid = layout.make_map(site.name, store, positions, positions).grid
    return Task(run, config, store, site, latents, labels, timesteps, grid)


def train(task: Task, settings: Settings, wanted: Sequence[Row], memory: float) -> Iterator[Row]:
    """Train the probes of the rows ``wanted``, a subset of :meth:`Task.wanted`; yield each row with its results.

    Maps that take more than ``memory`` GiB, including the copies used for training, are left out with a message.
    """
    batch_size = task.config.interpret.batch_size
    if rows := [row for row in wanted if row["probe"] == "linear"]:
        samples = task.store.manifest["samples"]
        means = features.means(task.site, task.latents, samples, task.timesteps, batch_size)
        for row in rows:
            yield row | _linear(means, *task.labels[row["label"]], row)
        del means
    for timestep in task.timesteps:
        for of in INPUTS:
            cell = "diff_c", timestep, of
            if rows := [row for row in wanted if (row["probe"], row["timestep"], row["input"]) == cell]:
                yield from _diff_c(task, settings, rows, timestep, of, memory)


def _linear(means: Means, label: Label, parts: Split, row: Row) -> Row:
    classes, numbers = _numbered(label, parts)
    train, validation, test = (
        (means.at(row["timestep"], part, row["input"] == "latents"), numbers[part])
        for part in (parts.train, parts.validation, parts.test)
    )
    started = time.perf_counter()
    model = linear.train(*train, validation, classes)
    trained = {"seconds": time.perf_counter() - started, "parameters": linear.parameters(model)}
    trained |= {"strength": model.strength}
    return trained | measured(functools.partial(linear.logits, model), *test, parts, classes)


def _diff_c(
    task: Task, settings: Settings, rows: Sequence[Row], timestep: int, of: str, memory: float
) -> Iterator[Row]:
    """Train Diff-C for each label of ``rows``, on maps that are read once; yield the rows with their results."""
    labels = [task.labels[row["label"]] for row in rows]
    samples = np.unique(np.concatenate([parts.all for _, parts in labels]))
    latents = task.latents if of == "latents" else None
    depth = latents.latents if latents else task.site.d
    gib = 2 * 4 * len(samples) * np.prod(task.grid) * depth / 2**30
    if gib > memory:
        print(
            f"{task.run}, timestep {timestep}: maps of {of} take {gib:.1f} GiB, but --memory is {memory:g}; "
            "diff_c is left out",
            file=sys.stderr,
        )
        return
    maps = features.maps(task.site, latents, timestep, task.grid, samples, task.config.interpret.batch_size)
    for row, (label, parts) in zip(rows, labels, strict=True):
        classes, numbers = _numbered(label, parts)
        seen, test = np.sort(np.concatenate([parts.train, parts.validation])), parts.test
        started = time.perf_counter()
        model = diff_c.train(
            maps[np.searchsorted(samples, seen)],
            numbers[seen],
            classes,
            settings.width,
            settings.epochs,
            settings.rate,
            settings.seed,
        )
        trained = {"seconds": time.perf_counter() - started, "parameters": diff_c.parameters(model)}
        at_test, logits = maps[np.searchsorted(samples, test)], functools.partial(diff_c.logits, model)
        yield row | trained | measured(logits, at_test, numbers[test], parts, classes)


def _numbered(label: Label, parts: Split) -> tuple[int, np.ndarray]:
    """Return the number of classes in the split, and the class number of each sample among them."""
    kept = np.unique(label.of_sample[parts.all])
    return len(kept), np.searchsorted(kept, label.of_sample).astype(np.int32)


def measured(
    logits: Callable[[np.ndarray], jax.Array], x: np.ndarray, class_N: np.ndarray, parts: Split, classes: int
) -> Row:
    """Return accuracy on the test samples with its interval, and the inference time per sample in ms."""
    predicted = np.concatenate([np.asarray(logits(x[i : i + TIMED]).argmax(-1)) for i in range(0, len(x), TIMED)])
    accuracy = float((predicted == class_N).mean())
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
