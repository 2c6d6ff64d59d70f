"""The rows of quality.py: reading them, and tables of single rows and of means over seeds."""

import itertools
import json
import pathlib
import typing

import numpy as np
from scipy import stats

from revelio_jax.errors import InputError

FIELDS = (
    "data", "latents", "system", "seed", "learning_rate", "k", "rows", "fvu", "dead_fraction", "mmcs", "matched"
)  # fmt: skip
MOST_DEAD = 0.03  # target
HEADER = """\
| data | system | seed | learning rate | k | rows | FVU | dead | mean max cosine | matched |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""
SUMMARY_HEADER = """\
| data | learning rate | system | seeds | FVU | dead | matched | missed targets |
| --- | ---: | --- | ---: | ---: | ---: | ---: | --- |"""


def read(path: str | None) -> list[dict]:
    """Return the rows of an earlier run, or none. Raise InputError if the file has something else."""
    if not path or not pathlib.Path(path).exists():
        return []
    try:
        rows = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        good = isinstance(rows, list) and all(isinstance(row, dict) and set(row) == set(FIELDS) for row in rows)
    except (OSError, ValueError):
        good = False
    if not good:
        raise InputError(f"--json is {path!r}, which does not have rows of this benchmark; name a new file")
    return rows


def cell(row: dict) -> tuple:
    """Return what identifies a row except its seed."""
    return row["data"], row["rows"], row["learning_rate"], row["system"]


def line(row: dict) -> str:
    """Return a row as a line of the table."""
    recovered = "| |" if row["mmcs"] is None else f"| {row['mmcs']:.3f} | {row['matched']:.1%}"
    return (
        f"| {row['data']} | {row['system']} | {row['seed']} | {row['learning_rate']:g} | {row['k']} "
        f"| {row['rows']:,} | {row['fvu']:.5f} | {row['dead_fraction']:.1%} {recovered} |"
    )


def summary(rows: list[dict], ours: str) -> str:
    """Return a table with the means over seeds, their 95 % intervals, and the targets that ``ours`` misses."""
    lines = [SUMMARY_HEADER]
    for (data, _, rate), group in itertools.groupby(sorted(rows, key=cell), key=lambda row: cell(row)[:3]):
        by_system = {system: list(part) for system, part in itertools.groupby(group, key=lambda row: row["system"])}
        for system, part in by_system.items():
            missed = ", ".join(misses(by_system, ours)) or "none" if system == ours else ""
            matched = "" if part[0]["matched"] is None else interval(part, "matched", ".1%")
            lines.append(
                f"| {data} | {rate:g} | {system} | {len(part)} | {interval(part, 'fvu', '.5f')} "
                f"| {interval(part, 'dead_fraction', '.1%')} | {matched} | {missed} |"
            )
    return "\n".join(lines)


def misses(by_system: dict[str, list[dict]], ours: str) -> list[str]:
    """Return the targets that the means of ``ours`` miss. Without another system only dead latents are judged."""

    def mean(system: str, field: str) -> float:
        return float(np.mean([row[field] for row in by_system[system]]))

    peers = [system for system in by_system if system != ours]
    judged = {"dead": mean(ours, "dead_fraction") > MOST_DEAD}
    if peers:
        judged["FVU"] = mean(ours, "fvu") > min(mean(peer, "fvu") for peer in peers)
        if by_system[ours][0]["matched"] is not None:
            judged["matched"] = mean(ours, "matched") < max(mean(peer, "matched") for peer in peers)
    return [name for name, missed in judged.items() if missed]


def interval(rows: list[dict], field: str, form: str) -> str:
    """Return the mean of a field and, from two rows on, the half-width of its 95 % interval."""
    values = np.array([row[field] for row in rows], float)
    text = format(values.mean(), form)
    if len(values) == 1:
        return text
    half: typing.Any = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{text} ± {format(half, form)}"
