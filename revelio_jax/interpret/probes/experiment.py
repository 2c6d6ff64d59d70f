"""Train and evaluate probes, with one row of results per hook point, timestep, label, probe and input."""

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
from revelio_jax.interpret.probes import diff_c, features, hierarchy, linear, sparse
from revelio_jax.interpret.probes.features import FeatureMeans
from revelio_jax.interpret.probes.split import LEAST, Split, split
from revelio_jax.interpret.wilson import wilson
from revelio_jax.store import SiteReader, Store

PROBES = ("linear", "sparse", "absorption", "diff_c")
INPUTS = ("activations", "latents")
TIMED = 64  # samples per batch when inference is timed
REPEATS = 9  # number of timings; the result is their median

ProbeRow = dict[str, typing.Any]
"""A row of probes.json, or the part of it that identifies the row; see command.KEY and :func:`evaluate`."""


@dataclasses.dataclass(frozen=True)
class ProbeSettings:
    """The settings that determine a result, in addition to the store and the SAE."""

    apart: str
    seed: int
    width: int
    epochs: int
    rate: float
    finer: str = ""

    def of(self, probe: str) -> ProbeRow:
        """Return the settings that affect a probe."""
        common = {"apart": self.apart, "seed": self.seed}
        if probe == "absorption":
            return common | {"finer": self.finer}
        return common | ({"width": self.width, "epochs": self.epochs, "rate": self.rate} if probe == "diff_c" else {})


@dataclasses.dataclass(frozen=True, eq=False)
class ProbedRun:
    """A run to probe: its store, its SAE, and the split of the samples for each label.

    ``finer`` divides the classes of the labels further, for absorption. ``grid`` is the height and width of the
    positions, None if they do not form a map.
    """

    run: str
    config: Config
    store: Store
    site: SiteReader
    latents: Dictionary
    labels: dict[str, tuple[Label, Split]]
    finer: Label | None
    timesteps: list[int]
    grid: tuple[int, int] | None

    def row_keys(self, settings: ProbeSettings, kinds: Sequence[str]) -> list[ProbeRow]:
        """Return the identifying fields of each row.

        Diff-C is left out if the positions do not form a map, and absorption if the latents have no decoder.
        """
        of_run = {"site": self.site.name, "store": self.store.fingerprint, "sae": self.latents.sha256}
        return [
            of_run | settings.of(kind) | {"timestep": timestep, "label": name, "probe": kind, "input": input_name}
            for timestep in self.timesteps
            for name in self.labels
            for kind in kinds
            if {"diff_c": bool(self.grid), "absorption": self.latents.W_dec_FD is not None}.get(kind, True)
            for input_name in (INPUTS if kind != "absorption" else INPUTS[1:])
        ]


def open_run(run: str, label_names: tuple[str, ...], settings: ProbeSettings) -> ProbedRun:
    """Open a run and split its samples for the labels ``label_names``, by default for every label column.

    Raise InputError if the run, a label or a setting cannot be used.
    """
    if not pathlib.Path(run, "config.json").is_file():
        raise InputError(f"{run} has no config.json; it must be a run folder, for example runs/mini_sd")
    config, _ = parse(["revelio_jax.interpret.probes", f"--config={pathlib.Path(run, 'config.json')}"], "")
    config = dataclasses.replace(config, run=run)
    store, site, latents = store_pass.open_inputs(config)
    table = store.table()
    for flag, names in (("--label", label_names), ("--apart", (settings.apart,)), ("--finer", (settings.finer,))):
        for name in filter(None, names):
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
    for label in purity.read_labels(table, label_names):
        classes = label.of_sample.copy()
        classes[skipped] = -1
        parts = split(classes, groups, settings.seed)
        if parts is None and label_names:
            raise InputError(
                f"--label is {label.name!r}; it must have at least two classes with {LEAST} {each} or more"
            )
        split_classes = 0 if parts is None else len(np.unique(classes[parts.all]))
        if left_out := len(np.unique(classes[classes >= 0])) - split_classes:
            print(
                f"{run}: {left_out} classes of {label.name} are left out, because they have fewer than {LEAST} {each}",
                file=sys.stderr,
            )
        if parts:
            labels[label.name] = label, parts
    if not labels:
        raise InputError(f"{run}: the samples of {store.location} have no label column that a probe can be trained on")
    positions, timesteps = layout.positions_and_timesteps(site)
    grid = layout.make_map(site.name, store, positions, positions).grid
    finer = purity.read_labels(table, (settings.finer,))[0] if settings.finer else None
    return ProbedRun(run, config, store, site, latents, labels, finer, timesteps, grid)


def train(
    probed_run: ProbedRun, settings: ProbeSettings, row_keys: Sequence[ProbeRow], memory: float
) -> Iterator[ProbeRow]:
    """Train the probes of ``row_keys``, a subset of :meth:`ProbedRun.row_keys`; yield each row with its results.

    Maps that take more than ``memory`` GiB, including the copies used for training, are left out with a message.
    """
    batch_size = probed_run.config.interpret.batch_size
    if rows := [row for row in row_keys if row["probe"] != "diff_c"]:
        samples = probed_run.store.manifest["samples"]
        means = features.means(probed_run.site, probed_run.latents, samples, probed_run.timesteps, batch_size)
        for row in rows:
            label, parts = probed_run.labels[row["label"]]
            if row["probe"] == "absorption":
                yield row | _absorption(means, label, parts, row, probed_run)
                continue
            measure = _linear if row["probe"] == "linear" else _sparse
            yield row | measure(means, label, parts, row)
        del means
    for timestep in probed_run.timesteps:
        for input_name in INPUTS:
            cell = "diff_c", timestep, input_name
            if rows := [row for row in row_keys if (row["probe"], row["timestep"], row["input"]) == cell]:
                yield from _diff_c(probed_run, settings, rows, timestep, input_name, memory)


def _linear(means: FeatureMeans, label: Label, parts: Split, row: ProbeRow) -> ProbeRow:
    classes, numbers = _class_numbers(label, parts)
    train, validation, test = (
        (means.at(row["timestep"], part, row["input"] == "latents"), numbers[part])
        for part in (parts.train, parts.validation, parts.test)
    )
    started = time.perf_counter()
    model = linear.train(*train, validation, classes)
    trained = {"seconds": time.perf_counter() - started, "parameters": linear.parameters(model)}
    trained |= {"strength": model.strength}
    return trained | evaluate(functools.partial(linear.logits, model), *test, parts, classes)


def _sparse(means: FeatureMeans, label: Label, parts: Split, row: ProbeRow) -> ProbeRow:
    classes, numbers = _class_numbers(label, parts)
    names = [label.classes[number] for number in np.unique(label.of_sample[parts.all])]
    is_latent = row["input"] == "latents"
    fitted = np.concatenate([parts.train, parts.validation])
    started = time.perf_counter()
    result = sparse.measure(
        *((means.at(row["timestep"], part, is_latent), numbers[part]) for part in (fitted, parts.test))
    )
    return {
        "seconds": time.perf_counter() - started,
        "auroc": {str(k): float(area) for k, area in zip(sparse.KS, result.auroc.mean(0), strict=True)},
        "balanced_accuracy": {
            str(k): float(share) for k, share in zip(sparse.KS, result.balanced_accuracy.mean(0), strict=True)
        },
        "best_f1": float(np.mean([each.f1 for each in result.best])),
        "best_features": {names[c]: best._asdict() for c, best in zip(result.classes, result.best, strict=True)},
        "classes": classes,
        "measured_classes": len(result.classes),
        "trained_on": len(parts.train) + len(parts.validation),
        "tested_on": len(parts.test),
        "groups": parts.groups,
    }


def _absorption(means: FeatureMeans, label: Label, parts: Split, row: ProbeRow, probed_run: ProbedRun) -> ProbeRow:
    classes, numbers = _class_numbers(label, parts)
    names = [label.classes[number] for number in np.unique(label.of_sample[parts.all])]
    fitted, test = (
        hierarchy.Inputs(
            means.at(row["timestep"], part, False), means.at(row["timestep"], part, True), numbers[part], part
        )
        for part in (np.concatenate([parts.train, parts.validation]), parts.test)
    )
    started = time.perf_counter()
    by_class = hierarchy.measure(fitted, test, probed_run.latents, names, probed_run.finer)
    return {
        "seconds": time.perf_counter() - started,
        **{
            f"{name}_absorption": statistics.fmean(each[name] for each in by_class.values()) if by_class else None
            for name in ("fraction", "full")
        },
        "by_class": by_class,
        "classes": classes,
        "measured_classes": len(by_class),
        "trained_on": len(fitted.class_N),
        "tested_on": len(test.class_N),
        "groups": parts.groups,
    }


def _diff_c(
    probed_run: ProbedRun,
    settings: ProbeSettings,
    rows: Sequence[ProbeRow],
    timestep: int,
    input_name: str,
    memory: float,
) -> Iterator[ProbeRow]:
    """Train Diff-C for each label of ``rows``, on maps that are read once; yield the rows with their results."""
    labels = [probed_run.labels[row["label"]] for row in rows]
    samples = np.unique(np.concatenate([parts.all for _, parts in labels]))
    latents = probed_run.latents if input_name == "latents" else None
    depth = latents.n_latents if latents else probed_run.site.d
    assert probed_run.grid is not None  # otherwise row_keys has no diff_c
    gib = 2 * 4 * len(samples) * np.prod(probed_run.grid) * depth / 2**30
    if gib > memory:
        print(
            f"{probed_run.run}, timestep {timestep}: maps of {input_name} take {gib:.1f} GiB, but --memory is "
            f"{memory:g}; diff_c is left out",
            file=sys.stderr,
        )
        return
    maps = features.maps(
        probed_run.site, latents, timestep, probed_run.grid, samples, probed_run.config.interpret.batch_size
    )
    for row, (label, parts) in zip(rows, labels, strict=True):
        classes, numbers = _class_numbers(label, parts)
        fitted, test = np.sort(np.concatenate([parts.train, parts.validation])), parts.test
        started = time.perf_counter()
        model = diff_c.train(
            maps[np.searchsorted(samples, fitted)],
            numbers[fitted],
            classes,
            settings.width,
            settings.epochs,
            settings.rate,
            settings.seed,
        )
        trained = {"seconds": time.perf_counter() - started, "parameters": diff_c.parameters(model)}
        at_test, logits = maps[np.searchsorted(samples, test)], functools.partial(diff_c.logits, model)
        yield row | trained | evaluate(logits, at_test, numbers[test], parts, classes)


def _class_numbers(label: Label, parts: Split) -> tuple[int, np.ndarray]:
    """Return the number of classes in the split, and the class number of each sample among them."""
    classes = np.unique(label.of_sample[parts.all])
    return len(classes), np.searchsorted(classes, label.of_sample).astype(np.int32)


def evaluate(
    logits: Callable[[np.ndarray], jax.Array], x: np.ndarray, class_N: np.ndarray, parts: Split, classes: int
) -> ProbeRow:
    """Return the accuracy on the test samples with its interval, and the inference time per sample in ms."""
    predicted = np.concatenate([np.asarray(logits(x[i : i + TIMED]).argmax(-1)) for i in range(0, len(x), TIMED)])
    accuracy = float((predicted == class_N).mean())
    low, high = wilson(accuracy, parts.groups)
    batch = x[:TIMED]
    jax.block_until_ready(logits(batch))
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(logits(batch))
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
        "inference_ms": 1e3 * statistics.median(seconds) / len(batch),
        "timed_together": len(batch),
    }
