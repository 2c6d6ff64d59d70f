"""Put the results of two benchmarks side by side, if they are comparable."""

import json
import pathlib
import re
import typing
from collections.abc import Sequence

from revelio_jax import json_text
from revelio_jax.benchmark.measurement import FIGURES
from revelio_jax.benchmark.noun_figures import NAMES
from revelio_jax.benchmark.results import Row, TaskResult, figures_of, reported
from revelio_jax.errors import InputError

# Fields of results.json that must be equal, and what to call them.
SETTINGS = {
    "format": "the format of results.json",
    "model": "the model, its revision, family or dtype",
    "steer": "the number of steps or config.steer.pooled",
    "scheduler": "the scheduler",
    "guidance": "the guidance scale",
    "height": "the height of the images",
    "width": "the width of the images",
    "safety_checker": "the safety checker",
    "judge": "the judge, its settings, threshold or weights",
}
# Differences that do not make figures incomparable, but times.
VERSIONS = {"version": "revelio_jax", "torch": "torch", "diffusers": "diffusers", "machine": "machine", "sae": "SAE"}


def compare(arguments: Sequence[str]) -> None:
    """Print two results side by side. Raise InputError if they are not comparable, naming every reason."""
    if len(arguments) != 2 or any(each.startswith("-") for each in arguments):
        raise InputError("benchmark compare takes two runs or results.json files: revelio benchmark compare A B")
    first, second = (read(path) for path in arguments)
    if reasons := differences(first, second):
        raise InputError(f"{arguments[0]} and {arguments[1]} are not comparable: {'; '.join(reasons)}")
    for field, name in VERSIONS.items():
        if first.get(field) != second.get(field):
            print(f"{name} differs: {_short(first, field)} and {_short(second, field)}")
    names = [f"A: {arguments[0]}", f"B: {arguments[1]}"]
    print("\n".join(names))
    for result, other in _pairs(first, second):
        print(f"\n{table(result, other)}")


def read(location: str) -> dict[str, typing.Any]:
    """Read results.json of a run or file. Raise InputError if it is missing or malformed."""
    path = pathlib.Path(location)
    if path.is_dir():
        candidates = [path / "benchmark" / "results.json", path / "results.json"]
        path = next((each for each in candidates if each.is_file()), candidates[0])
    try:
        content = json_text.parse_object(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    if not isinstance(content.get("tasks"), list) or "judge" not in content:
        raise InputError(f"{path} is not the result of revelio benchmark")
    return content


def differences(first: dict[str, typing.Any], second: dict[str, typing.Any]) -> list[str]:
    """Return the reasons why two results are not comparable; none if they are."""
    reasons = [
        f"{name} differs ({_short(first, field)} and {_short(second, field)})"
        for field, name in SETTINGS.items()
        if first.get(field) != second.get(field)
    ]
    networks, others = (side.get("quality") or {} for side in (first, second))
    reasons += [
        f"the network or the reference of {name} differs ({_differing(networks[name], others[name])})"
        for name in networks
        if name in others and networks[name] != others[name]
    ]
    asked, other = (side.get("noun_judge") for side in (first, second))
    if asked and other and asked != other:
        reasons.append(f"the judge of nouns differs ({_differing(asked, other)})")
    pairs = _pairs(first, second)
    if not pairs:
        reasons.append("they have no concept in common")
    for result, other in pairs:
        name = result["concept"]
        if result["seeds"] != other["seeds"]:
            reasons.append(f"{name}: {result['seeds']} and {other['seeds']} seeds")
        for each in sorted({*result["sets"], *other["sets"]}):
            prints = [side["sets"].get(each, {}).get("fingerprint") for side in (result, other)]
            if prints[0] != prints[1]:
                reasons.append(f"{name}: the prompts of {each} differ")
    return reasons


def table(first: TaskResult, second: TaskResult) -> str:
    """Return a Markdown table of the chosen strengths of both results, one line per method."""
    rows = [{row["method"]: row for row in reported(result) if row["chosen"]} for result in (first, second)]
    action = "added" if first["adding"] else "removed"
    names = [
        name for name in FIGURES if any(name in figures_of(row)["outcome"] for side in rows for row in side.values())
    ]
    sides = [row for side in rows for row in side.values()]
    figures = list(dict.fromkeys(name for row in sides for name in row.get("quality") or {}))
    nouns = [name for name in NAMES if any(_noun_mean(row, name) is not None for row in sides)]
    columns = [*(FIGURES[name] for name in names), *figures, *(NAMES[name] for name in nouns), "worst", "time / plain"]
    lines = [f"**{first['concept']}, {action}**: A, B and B - A", "", f"| method | {' | '.join(columns)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for method in dict.fromkeys([*rows[0], *rows[1]]):
        pair = [side.get(method) for side in rows]
        cells = [_cells([_mean(row, name) for row in pair]) for name in names]
        cells += [_cells([_quality_mean(row, name) for row in pair]) for name in figures]
        cells += [_cells([_noun_mean(row, name) for row in pair]) for name in nouns]
        cells.append(_cells([row and figures_of(row)["worst"]["mean"] for row in pair]))
        cells.append(_cells([row["time"]["ratio"]["median"] if row and row["time"] else None for row in pair]))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _pairs(first: dict[str, typing.Any], second: dict[str, typing.Any]) -> list[tuple[TaskResult, TaskResult]]:
    others = {(each["concept"], each["adding"]): each for each in second["tasks"]}
    return [
        (each, others[each["concept"], each["adding"]])
        for each in first["tasks"]
        if (each["concept"], each["adding"]) in others
    ]


def _mean(row: Row | None, name: str) -> float | None:
    values = figures_of(row)["outcome"].get(name) if row else None
    return values["mean"] if values else None


def _quality_mean(row: Row | None, name: str) -> float | None:
    figure = (row.get("quality") or {}).get(name) if row else None  # results of earlier versions have none
    return figure["mean"] if figure else None


def _noun_mean(row: Row | None, name: str) -> float | None:
    nouns = row.get("nouns") if row else None
    values = nouns["intervals"].get(name) if nouns else None
    return values["mean"] if values else None


def _cells(values: list[float | None]) -> str:
    first, second = values
    shown = ["-" if each is None else f"{each:.3f}" for each in values]
    if first is None or second is None:
        return ", ".join(shown)
    return ", ".join([*shown, f"{second - first:+.3f}"])


def _differing(first: dict[str, typing.Any], second: dict[str, typing.Any]) -> str:
    """Return the entries of two records that differ, with the first digits of hashes."""
    entries = [
        f"{key}: {json.dumps(first.get(key))} and {json.dumps(second.get(key))}"
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    ]
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1", ", ".join(entries))


def _short(content: dict[str, typing.Any], field: str) -> str:
    text = json.dumps(content.get(field))
    return text if len(text) <= 60 else text[:57] + "..."
