"""Ablations: the points of several results, each with its settings, and the lines along which one setting varies."""

import dataclasses
import pathlib
import typing
from collections.abc import Mapping, Sequence

from revelio_jax.benchmark import results_comparison
from revelio_jax.benchmark.figures import Figures
from revelio_jax.benchmark.measurement import Interval
from revelio_jax.benchmark.results import Row
from revelio_jax.benchmark.variants import ONE_BRANCH, SteerSettings, parse_method
from revelio_jax.errors import InputError

EFFECT, RETENTION, WORST = "effect", "retention", "worst"
METHOD = "steer"  # the method that is compared by default: the others do not change with the SAE


@dataclasses.dataclass(frozen=True)
class Axis:
    """A setting that results may vary: its name in plots, and the name of the plot's file."""

    title: str
    file: str


AXES = {
    "site": Axis("hook point", "layer"),
    "expansion": Axis("expansion factor", "capacity"),
    "k": Axis("k", "k"),
    "architecture": Axis("architecture", "architecture"),
    "trained_positions": Axis("positions of the training rows", "trained_positions"),
    "steps": Axis("training steps", "steps"),
    "batch_size": Axis("rows per step", "batch_size"),
    "learning_rate": Axis("learning rate", "learning_rate"),
    "seed": Axis("seed of training", "seed"),
    "method": Axis("method", "method"),
    "rule": Axis("rule", "rule"),
    "learned": Axis("concept learned from", "learned"),
    "negative_branch": Axis("unconditional branch", "negative_branch"),
    "positions": Axis("steered positions", "positions"),
    "schedule": Axis("steered timesteps", "schedule"),
}
"""All settings that may vary, of the SAE and then of the method. Results may differ in nothing else."""
SPEAKING = ("site", "architecture", "method", "rule")  # values that need no name in a label
Value = str | float | None


@dataclasses.dataclass(frozen=True)
class Point:
    """One method of one result on one task. ``settings`` has a value for each of :data:`AXES`.

    ``rows`` has the method at each strength, in ascending order. ``strength`` is the chosen one, and ``chosen`` has its
    figures on the prompts that report; both are None if none was chosen. ``prompts`` and ``seeds`` are the sample size
    of these figures.
    """

    run: str
    task: str
    adding: bool
    method: str
    settings: Mapping[str, Value]
    rows: tuple[Row, ...]
    strength: float | None
    chosen: Figures | None
    prompts: Mapping[str, int]
    seeds: int


class Line(typing.NamedTuple):
    """Points of one task that differ in one setting, in the order of its values.

    ``settings`` has the labels of the other settings that vary between points, by name.
    """

    task: str
    settings: Mapping[str, str]
    points: tuple[Point, ...]


def read_points(locations: Sequence[str], methods: Sequence[str] = ()) -> list[Point]:
    """Return the points of results that are comparable, sorted by their tasks and settings.

    ``methods`` are the names or texts of the methods and default to all settings of ``steer``. Raise InputError if a
    result is missing or malformed, if two are not comparable apart from :data:`AXES`, if two points have the same
    settings, or if a method is in no result.
    """
    contents = [results_comparison.read(location) for location in locations]
    for location, content in zip(locations[1:], contents[1:], strict=True):
        if reasons := results_comparison.differences(contents[0], content):
            raise InputError(f"{locations[0]} and {location} are not comparable: {'; '.join(reasons)}")
    points: list[Point] = []
    for location, content in zip(locations, contents, strict=True):
        try:
            points += _points(location, content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{location}: the results are malformed or of an earlier version ({type(error).__name__}: {error}); "
                "run revelio benchmark again"
            ) from error
    found = [point for point in points if _is_one(point, methods or (METHOD,))]
    if missing := [method for method in methods if not any(_is_one(point, [method]) for point in points)]:
        raise InputError(f"--method is {missing[0]!r}; the results have {_listed(point.method for point in points)}")
    if not found:
        raise InputError(f"the results have no method {METHOD}; pass --method: {_listed(p.method for p in points)}")
    _refuse_equal(found)
    tasks = list(dict.fromkeys(point.task for point in found))
    order = {axis: values(found, axis) for axis in AXES}
    return sorted(found, key=lambda p: (tasks.index(p.task), *(order[axis].index(p.settings[axis]) for axis in AXES)))


def varied(points: Sequence[Point]) -> list[str]:
    """Return the settings that take more than one value, in the order of :data:`AXES`."""
    return [name for name in AXES if len({point.settings[name] for point in points}) > 1]


def lines(points: Sequence[Point], axis: str) -> list[Line]:
    """Return the lines along which ``axis`` varies and every other setting is fixed, of points with a chosen strength.

    A single point is no line.
    """
    others = [name for name in varied(points) if name != axis]
    groups: dict[tuple[Value | bool, ...], list[Point]] = {}
    for point in points:
        if point.chosen:
            key = (point.task, *(point.settings[name] for name in others))
            groups.setdefault(key, []).append(point)
    order = {value: number for number, value in enumerate(values(points, axis))}
    return [
        Line(
            group[0].task,
            {name: shown(name, group[0].settings[name]) for name in others},
            tuple(sorted(group, key=lambda point: order[point.settings[axis]])),
        )
        for group in groups.values()
        if len(group) > 1
    ]


def values(points: Sequence[Point], axis: str) -> list[Value]:
    """Return the values of a setting in ascending order; texts by their parts, so that layer.9 precedes layer.10."""
    return sorted({point.settings[axis] for point in points}, key=_sort_key)


def shown(name: str, value: Value) -> str:
    """Return the value of a setting as the label of a line."""
    if value is None:
        return f"{AXES[name].title}: unknown"
    if isinstance(value, str):
        return value if name in SPEAKING else f"{AXES[name].title} {value}"
    return f"{value:g}x" if name == "expansion" else f"{AXES[name].title} {value:g}"


def at_strength(row: Row) -> Figures | None:
    """Return the figures of a strength that all strengths have: of the prompts that choose, otherwise of all others."""
    return row["choosing"] or row["figures"]


def intervals(figures: Figures, adding: bool) -> dict[str, Interval]:
    """Return the intervals of the effect, the retention and the worst figure; the retention only if it is measured."""
    concept, retention = figures["outcome"]["concept"], figures["retention"]
    low, high = (concept["low"], concept["high"]) if adding else (1 - concept["high"], 1 - concept["low"])
    effect: Interval = {"mean": concept["mean"] if adding else 1 - concept["mean"], "low": low, "high": high}
    kept = {RETENTION: retention} if retention else {}
    return {EFFECT: effect, **kept, WORST: figures["worst"]}


def _points(location: str, content: dict[str, typing.Any]) -> list[Point]:
    sae = content["autoencoder"]
    if sae is None:
        raise InputError(f"{location}: no method uses an SAE, so there is nothing to ablate")
    of_sae: dict[str, Value] = {
        "expansion": sae["latents"] / sae["width"],
        "trained_positions": sae["positions"],
        **{name: sae[name] for name in ("site", "k", "architecture", "steps", "batch_size", "learning_rate", "seed")},
    }
    points: list[Point] = []
    for task in content["tasks"]:
        by_method: dict[str, list[Row]] = {}
        for row in task["rows"]:
            if row["strength"]:
                by_method.setdefault(row["method"], []).append(row)
        for method, rows in by_method.items():
            for figures in (each for row in rows for each in (row["figures"], row["choosing"]) if each):
                intervals(figures, task["adding"])  # raises KeyError for results of an earlier version
            chosen = next((row for row in rows if row["chosen"]), None)
            points.append(
                Point(
                    run_name(location),
                    task["concept"] + (", added" if task["adding"] else ""),
                    task["adding"],
                    method,
                    of_sae | _method_settings(method),
                    tuple(sorted(rows, key=lambda row: row["strength"])),
                    chosen and chosen["strength"],
                    chosen and chosen["figures"],
                    task["prompts"],
                    task["seeds"],
                )
            )
    return points


def run_name(location: str) -> str:
    """Return the name of the run that a location of results belongs to."""
    path = pathlib.Path(location).absolute()
    folder = path if path.is_dir() else path.parent
    return folder.parent.name if folder.name == "benchmark" else folder.name


def _method_settings(text: str) -> dict[str, Value]:
    spec = parse_method(text, ())
    settings: dict[str, Value] = dict.fromkeys(("rule", "learned", "negative_branch", "positions", "schedule"))
    settings["method"] = spec.name
    if isinstance(each := spec.settings, SteerSettings):
        timesteps = "-".join(f"{timestep:g}" for timestep in each.timesteps) or "all"
        ramp = "" if each.ramp == SteerSettings.ramp else f", ramp {each.ramp[0]:g} to {each.ramp[1]:g}"
        settings |= {"rule": each.rule, "learned": each.learned, "positions": each.positions}
        settings |= {"negative_branch": _branch(each)}
        settings |= {"schedule": timesteps + ramp}
    return settings


def _branch(steer: SteerSettings) -> str:
    """Return whether the unconditional branch is steered."""
    if not steer.negative_branch or steer.rule in ONE_BRANCH:
        return "not steered"
    return "by the rule" if steer.rule == "auto" else "steered"


def _is_one(point: Point, methods: Sequence[str]) -> bool:
    return point.method in methods or point.settings["method"] in methods


def _refuse_equal(points: Sequence[Point]) -> None:
    """Raise InputError if two points have the same task and settings."""
    seen: dict[tuple[typing.Any, ...], Point] = {}
    for point in points:
        key = (point.task, *(point.settings[name] for name in AXES))
        if key in seen:
            raise InputError(
                f"{seen[key].run} ({seen[key].method}) and {point.run} ({point.method}) have the same settings "
                f"({_listed(shown(name, point.settings[name]) for name in ('site', 'expansion', 'k'))}); pass one"
            )
        seen[key] = point


def _listed(names: typing.Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names)) or "none"


def _sort_key(value: Value) -> tuple[typing.Any, ...]:
    if value is None:
        return (0,)
    if not isinstance(value, str):
        return (1, value)
    parts = [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in value.replace("_", ".").split(".")]
    return (2, *parts)
