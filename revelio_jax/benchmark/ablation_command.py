"""Draw ablations: removal and retention of several benchmarked runs against the setting in which they differ.

    revelio benchmark ablations runs/a runs/b runs/c --out ablations

The arguments are runs or results.json files of revelio benchmark. They must have the same model, scheduler, judge,
prompts and seeds. They may differ in settings of the SAE, for example in the hook point, the expansion factor and k,
and in settings of the method steer: rule, unconditional branch, positions, timesteps.

Each setting that varies gets a plot, named after it: layer.png, capacity.png (the expansion factor), k.png and others.
A line joins points that differ in this setting alone. Figures are those of the strength that the benchmark chose for
each point. strength_<run>.png shows one result against the strength, on the prompts that choose it. ablations.csv has
all numbers, ablations.md those of the chosen strengths. The default of --out is the folder ablations next to the first
run.
"""

import csv
import io
import pathlib
from collections.abc import Sequence

from revelio_jax import files
from revelio_jax.benchmark import ablation_plots
from revelio_jax.benchmark.ablations import (
    AXES,
    EFFECT,
    RETENTION,
    WORST,
    Point,
    intervals,
    lines,
    read_points,
    varied,
)
from revelio_jax.benchmark.measurement import Interval
from revelio_jax.cli import Parser
from revelio_jax.errors import InputError, require
from revelio_jax.steering.learned_concepts import file_name


def main(arguments: Sequence[str]) -> None:
    """Run ``revelio benchmark ablations`` with its arguments."""
    parser = Parser("revelio_jax.benchmark.command", __doc__)
    parser.prog += " ablations"
    parser.add_argument("runs", nargs="+", help="runs with the results of revelio benchmark, or results.json files")
    parser.add_argument("--out", type=pathlib.Path, help="folder to write into")
    parser.add_argument(
        "--method",
        action="append",
        default=[],
        help="method to draw: its name, or its text in the results; may be repeated (default: steer)",
    )
    parsed = parser.parse(arguments)
    require("matplotlib", "plot", "revelio benchmark ablations")
    first = pathlib.Path(parsed.runs[0])
    out: pathlib.Path = parsed.out or (first if first.is_dir() else first.parent).absolute().parent / "ablations"
    files.check_writable(out, "--out")
    points = read_points(parsed.runs, parsed.method)
    found = {axis: drawn for axis in varied(points) if (drawn := lines(points, axis))}
    if len(parsed.runs) > 1 and not found:
        raise InputError(_nothing_to_draw(points))
    out.mkdir(parents=True, exist_ok=True)
    for axis, drawn in found.items():
        with files.replacing(out / f"{AXES[axis].file}.png") as part:
            ablation_plots.draw(drawn, axis).savefig(part, format="png")
    for run in dict.fromkeys(point.run for point in points):
        with files.replacing(out / f"strength_{file_name(run)}.png") as part:
            figure = ablation_plots.draw_strengths([point for point in points if point.run == run])
            figure.savefig(part, format="png")
    files.write_text(out / "ablations.csv", csv_text(points))
    text = markdown(points)
    files.write_text(out / "ablations.md", text)
    print(text)
    names = [f"{AXES[axis].file}.png" for axis in found]
    print(f"ablations: {out}: {', '.join([*names, 'strength_*.png', 'ablations.csv', 'ablations.md'])}")


def markdown(points: Sequence[Point]) -> str:
    """Return a table of the chosen strengths, with a column for each setting that varies."""
    names = varied(points)
    first = points[0]
    counts = " and ".join(f"{count} prompts {role}" for role, count in first.prompts.items() if count)
    headings = ["concept", *(AXES[name].title for name in names), "strength", EFFECT, RETENTION, WORST]
    rows = [
        "At the chosen strength; 95 % intervals over prompts. "
        f"Each point has {counts}, {first.seeds} {'seed' if first.seeds == 1 else 'seeds'}.",
        "",
        f"| {' | '.join(headings)} |",
        "|---" * len(headings) + "|",
    ]
    for point in points:
        cells = [point.task, *(_text(point.settings[name]) for name in names)]
        figures = intervals(point.chosen, point.adding) if point.chosen else {}
        cells += ["none chosen" if point.strength is None else f"{point.strength:g}"]
        cells += [_cell(figures.get(name)) for name in (EFFECT, RETENTION, WORST)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, ""])


def csv_text(points: Sequence[Point]) -> str:
    """Return one line for each point, strength, half of the prompts and figure, as results.csv of a benchmark."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", "concept", "text", *AXES, "strength", "chosen", "prompts", "figure", "mean", "low", "high"])
    for point in points:
        settings = [_text(point.settings[name]) for name in AXES]
        for row in point.rows:
            for prompts, figures in (("reported", row["figures"]), ("choosing", row["choosing"])):
                for name, each in (intervals(figures, point.adding) if figures else {}).items():
                    head = [
                        point.run,
                        point.task,
                        point.method,
                        *settings,
                        row["strength"],
                        row["chosen"],
                        prompts,
                        name,
                    ]
                    writer.writerow([*head, each["mean"], each["low"], each["high"]])
    return file.getvalue()


def _nothing_to_draw(points: Sequence[Point]) -> str:
    """Return why no two points make a line."""
    if not any(point.chosen for point in points):
        return "no strength is chosen in these results, because no prompt measures the retention"
    differing = ", ".join(AXES[name].title for name in varied(points))
    return f"no two results differ in one setting alone; they differ in: {differing or 'the concepts'}"


def _text(value: str | float | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:g}"


def _cell(values: Interval | None) -> str:
    return "{mean:.3f} ({low:.2f}-{high:.2f})".format(**values) if values else ""
