"""The results of a benchmark as tables in Markdown and CSV, and the rows that both have.

Removal, and quality with retention, are separate tables.
"""

import csv
import io
import typing
from collections.abc import Sequence

from revelio_jax.benchmark.figures import Figures
from revelio_jax.benchmark.measurement import Interval, figure_names
from revelio_jax.benchmark.method_times import MethodTime
from revelio_jax.benchmark.noun_figures import NAMES, NounFigures
from revelio_jax.benchmark.quality_measures import QualityFigure

MOST_HARMS = 5  # neighbors of each method in the table of harms; results.csv has all


class Row(typing.TypedDict):
    """One method at one strength.

    ``chosen``: the strength that the table shows. ``figures`` are those of the prompts that report, ``choosing`` those
    of the prompts that choose the strength; each is None if it was not measured, as is ``time``. ``quality`` has the
    figures of config.benchmark.quality. ``nouns`` is None without prompts that have nouns.
    """

    method: str
    strength: float
    chosen: bool
    key: str
    figures: Figures | None
    choosing: Figures | None
    quality: dict[str, QualityFigure]
    nouns: NounFigures | None
    time: MethodTime | None


class TaskResult(typing.TypedDict):
    """The rows of one task; ``prompts`` is the number of prompts that report the figures, by role."""

    concept: str
    adding: bool
    sets: dict[str, typing.Any]
    prompts: dict[str, int]
    seeds: int
    rows: list[Row]


def reported(result: TaskResult) -> list[Row]:
    """Return the rows whose images report figures: chosen strengths, or all if none could be chosen."""
    return [row for row in result["rows"] if row["figures"]]


def figures_of(row: Row) -> Figures:
    """Return the figures of a row that reports."""
    assert row["figures"] is not None
    return row["figures"]


def markdown(result: TaskResult) -> str:
    """Return the Markdown tables of the chosen strengths of one task: removal, quality and retention, and harms."""
    rows = reported(result)
    first = figures_of(rows[0])
    names = figure_names(first["outcome"])
    sets = list(first["by_set"]) if len(first["by_set"]) > 1 else []
    has_distance, has_time = first["distance"] is not None, any(row["time"] for row in rows)
    action = "added to prompts without its label" if result["adding"] else "removed"
    counts = " and ".join(f"{count} prompts {role}" for role, count in result["prompts"].items() if count)
    headings = ["method", "strength", *names.values(), *sets]
    headings += ["other prompts: distance"] * has_distance + ["worst"] + ["time / plain", "evaluations"] * has_time
    lines = [
        f"**{result['concept']}, {action}** ({counts}, {result['seeds']} seeds)",
        "",
        f"| {' | '.join(headings)} |",
        "|---" * len(headings) + "|",
    ]
    for row in rows:
        figures = figures_of(row)
        cells = _head(row)
        cells += [_cell(figures["outcome"].get(name)) for name in names]
        cells += [_cell(figures["by_set"].get(name)) for name in sets]
        cells += [_cell(figures["distance"])] * has_distance + [_cell(figures["worst"])]
        if has_time:
            cells += _time_cells(row["time"])
        lines.append(f"| {' | '.join(cells)} |")
    if not any(row["chosen"] and row["strength"] for row in result["rows"]) and any(
        row["strength"] for row in result["rows"]
    ):
        lines += ["", "No strength is chosen: no prompt measures the retention. Add a prompt set with role=other."]
    return "\n".join([*lines, "", *_quality(result, rows), *_harms(rows)])


def _quality(result: TaskResult, rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table of quality and retention; none if no such figure was measured."""
    figures = dict.fromkeys(name for row in rows for name in row["quality"])
    nouns = {name: text for name, text in NAMES.items() if any(_noun_interval(row, name) for row in rows)}
    if not figures and not nouns:
        return []
    lines = [f"**{result['concept']}: quality and retention**", ""]
    lines += [f"| {' | '.join(['method', 'strength', *figures, *nouns.values()])} |"]
    lines += ["|---" * (2 + len(figures) + len(nouns)) + "|"]
    for row in rows:
        cells = [*_head(row), *(_quality_cell(row["quality"].get(name)) for name in figures)]
        cells += [_cell(_noun_interval(row, name)) for name in nouns]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _harms(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table of the most harmed neighbors; none without neighbors."""
    harmed = [(row, row["nouns"]["harms"][:MOST_HARMS]) for row in rows if row["nouns"] and row["method"] != "plain"]
    if not any(harms for _, harms in harmed):
        return []
    headings = ("method", "strength", "neighbor", "shown by plain", "shown by method", "harm")
    lines = ["**Most harmed neighbors**", "", f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row, harms in harmed:
        for harm in harms:
            shown = f"{harm['harm']:.3f} ({harm['low']:.2f}-{harm['high']:.2f})"
            cells = [*_head(row), harm["neighbor"], f"{harm['plain']:.3f}", f"{harm['method']:.3f}", shown]
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _head(row: Row) -> list[str]:
    return [row["method"], f"{row['strength']:g}" if row["strength"] else ""]


def _noun_interval(row: Row, name: str) -> Interval | None:
    return row["nouns"]["intervals"].get(name) if row["nouns"] else None


def csv_text(results: Sequence[TaskResult]) -> str:
    """Return one line for each task, method, strength, half of the prompts and figure.

    The column prompts is ``reported``, or ``choosing`` for the prompts that choose the strength.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["concept", "adding", "method", "strength", "chosen", "prompts", "figure", "mean", "low", "high"])
    for result in results:
        for row in result["rows"]:
            head = [result["concept"], result["adding"], row["method"], row["strength"], row["chosen"]]
            for prompts, figures in (("reported", row["figures"]), ("choosing", row["choosing"])):
                if figures is None:
                    continue
                for name, values in _intervals(figures):
                    writer.writerow([*head, prompts, name, values["mean"], values["low"], values["high"]])
                writer.writerow([*head, prompts, "flagged", figures["flagged"], "", ""])
            for name, figure in row["quality"].items():
                writer.writerow([*head, "reported", name, figure["mean"], figure["low"], figure["high"]])
            nouns = row["nouns"] or {"intervals": {}, "harms": []}
            for name, values in nouns["intervals"].items():
                writer.writerow([*head, "reported", name, values["mean"], values["low"], values["high"]])
            for harm in nouns["harms"]:
                name = f"harm to {harm['neighbor']}"
                writer.writerow([*head, "reported", name, harm["harm"], harm["low"], harm["high"]])
            if time := row["time"]:
                ratio = time["ratio"]
                writer.writerow([*head, "reported", "time_ratio", ratio["median"], ratio["low"], ratio["high"]])
    return file.getvalue()


def _intervals(figures: Figures) -> list[tuple[str, Interval]]:
    named = [*figures["outcome"].items(), *((f"concept in {name}", each) for name, each in figures["by_set"].items())]
    return named + [(name, each) for name in ("distance", "retention", "worst") if (each := figures[name])]


def _cell(values: Interval | None) -> str:
    return "{mean:.3f} ({low:.2f}-{high:.2f})".format(**values) if values else ""


def _quality_cell(figure: QualityFigure | None) -> str:
    if figure is None or figure["low"] is None:
        return f"{figure['mean']:.4g}" if figure else ""
    return "{mean:.4g} ({low:.4g}-{high:.4g})".format(**figure)


def _time_cells(time: MethodTime | None) -> list[str]:
    if time is None:
        return ["", ""]
    ratio, evaluations = time["ratio"], time["evaluations"]
    shown = "not counted" if evaluations is None else f"{evaluations[0]:g}"
    if evaluations and evaluations[1]:
        shown += f", {evaluations[1]:g} with gradient"
    return ["{median:.2f} ({low:.2f}-{high:.2f})".format(**ratio), shown]
