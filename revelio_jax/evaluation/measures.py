"""The measures of an evaluated SAE, from all files of its run: evaluation, interpretation, splice and probes."""

import collections
import contextlib
import dataclasses
import json
import pathlib
import typing
from collections.abc import Generator, Iterator, Mapping, Sequence

from revelio_jax import json_text
from revelio_jax.errors import InputError

LOWER, HIGHER = "lower is better", "higher is better"
QUALITY = {"fvu": ("FVU", LOWER), "cosine": ("cosine", HIGHER), "dead_fraction": ("dead latents", LOWER)}
OF_LATENTS = ("monosemanticity", "moran", "localization", "inside")
SPARSE, ABSORPTION = "sparse", "absorption"
ON_FEW = ("1", "5")  # numbers of latents of sparse probes


class Value(typing.NamedTuple):
    """A measure with its 95 % interval; None without one."""

    mean: float
    low: float | None = None
    high: float | None = None


class Measure(typing.NamedTuple):
    """The name of a measure, and which of its values are better; "" if neither is."""

    title: str
    better: str


@dataclasses.dataclass(frozen=True)
class MeasuredSae:
    """An SAE with its L0 and its other measures. ``architecture`` names imported SAEs as such.

    ``stores`` and ``rows`` are the fingerprint and the number of the held-out rows.
    """

    run: str
    architecture: str
    site: str
    latents: int
    l0: float
    stores: str
    rows: int
    measures: Mapping[Measure, Value]


def read(run: str) -> MeasuredSae:
    """Read the measures of a run. Raise InputError if it was not evaluated, or if a file is malformed."""
    folder = pathlib.Path(run)
    path = folder / "evaluation.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; run revelio evaluate first")
    with _refuse_malformed(path):
        evaluation = json.loads(path.read_text())  # values may be NaN
        sae = evaluation["autoencoder"]
        architecture = sae["architecture"] + (" (imported)" if sae["imported"] else "")
        found = dict(_of_evaluation(evaluation))
        identity = str(evaluation["site"]), int(sae["latents"]), float(evaluation["l0"]), str(evaluation["stores"])
        rows = int(evaluation["rows"])
    files = {
        folder / "latents" / "summary.json": _of_interpretation,
        folder / "splice.json": _of_splice,
        folder / "probes.json": _of_probes,
        folder.absolute().parent / "probes.json": _of_probes,
    }
    for path, measures_of in files.items():
        if path.is_file():
            with _refuse_malformed(path):
                found |= dict(measures_of(json_text.parse_object(path.read_bytes()), folder))
    return MeasuredSae(run, architecture, *identity, rows, found)


def check(saes: Sequence[MeasuredSae]) -> None:
    """Raise InputError if two SAEs of one hook point were evaluated on other rows."""
    first_of: dict[str, MeasuredSae] = {}
    for sae in saes:
        first = first_of.setdefault(sae.site, sae)
        if (sae.stores, sae.rows) != (first.stores, first.rows):
            raise InputError(
                f"{first.run} and {sae.run} were evaluated on different rows of {sae.site}: on {first.rows:,} and "
                f"{sae.rows:,} held-out rows, or of other stores"
            )


@contextlib.contextmanager
def _refuse_malformed(path: pathlib.Path) -> Generator[None]:
    """Turn errors about the contents of a file in the block into InputError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OSError, RecursionError) as error:
        raise InputError(
            f"{path} is malformed or of an earlier version ({type(error).__name__}: {error}); run the command that "
            "wrote it again"
        ) from error


def _of_evaluation(evaluation: dict[str, typing.Any]) -> Iterator[tuple[Measure, Value]]:
    for name, measure in QUALITY.items():
        yield Measure(*measure), Value(float(evaluation[name]))
    if evaluation["redundancy"]:
        yield (
            Measure("largest cosine with another latent", LOWER),
            Value(float(evaluation["redundancy"]["quartiles"][1])),
        )
    if of_runs := evaluation["stability"].values():
        mean = sum(each["mean_cosine"] for each in of_runs) / len(of_runs)
        yield Measure("stability: mean cosine", HIGHER), Value(mean)


def _of_interpretation(summary: dict[str, typing.Any], _: pathlib.Path) -> Iterator[tuple[Measure, Value]]:
    for name in OF_LATENTS:
        if (mean := summary["measures"].get(name)) and mean["measured"]:
            yield Measure(name, HIGHER if name == "monosemanticity" else ""), _value(mean["measured"])
    for label, purity in summary["purity"].items():
        if mean := purity["measured"]["purity"]:
            yield Measure(f"purity of {label}", HIGHER), _value(mean)


def _of_splice(record: dict[str, typing.Any], _: pathlib.Path) -> Iterator[tuple[Measure, Value]]:
    for name, figure in record["figures"].items():
        if share := figure["recovered"].get("trained SAE"):
            yield Measure(f"recovered share: {name}", HIGHER), _value(share)


def _of_probes(content: dict[str, typing.Any], folder: pathlib.Path) -> Iterator[tuple[Measure, Value]]:
    """Yield the measures of the probes of latents, as means over timesteps."""
    found: dict[Measure, list[float]] = collections.defaultdict(list)
    for row in content["rows"]:
        if row["input"] != "latents" or pathlib.Path(row["run"]).absolute() != folder.absolute():
            continue
        label = row["label"]
        if row["probe"] == SPARSE:
            found[Measure(f"F1 of the best latent, {label}", HIGHER)].append(row["best_f1"])
            for k in (k for k in ON_FEW if k in row["auroc"]):
                found[Measure(f"AUROC of {k} latents, {label}", HIGHER)].append(row["auroc"][k])
        elif row["probe"] == ABSORPTION:
            for name, title in (("fraction_absorption", "absorbed fraction"), ("full_absorption", "fully absorbed")):
                if row[name] is not None:
                    found[Measure(f"{title}, {label}", LOWER)].append(row[name])
    for measure, values in found.items():
        yield measure, Value(sum(values) / len(values))


def _value(interval: dict[str, float]) -> Value:
    return Value(float(interval["mean"]), float(interval["low"]), float(interval["high"]))
