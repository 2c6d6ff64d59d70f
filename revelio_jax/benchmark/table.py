"""Measure how well each rule removes concepts, compared with a difference of means and a random direction.

    revelio benchmark --config mini_sd \\
        --concept "style=glossy 3d" --concept category=heart --concept category=animal

For every concept and rule, one half of the prompts chooses the strength with the best worst case of removal and
retention. The other half measures its effect. Rules that learn from labeled prompts are also measured without them,
from the concept's text only. If some prompts leave the concept's label out, the concept is also added to those prompts.
Writes runs/<name>/steering/table.json and table.md. Every measurement is saved when it is finished; the same command
continues after it was stopped.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import sys
import typing
from collections.abc import Sequence

import torch

from revelio_jax import files, shipped
from revelio_jax.benchmark.bench import check_column, make_adding_bench, make_bench
from revelio_jax.benchmark.comparison import Comparison, compare
from revelio_jax.benchmark.judges import load_judge
from revelio_jax.benchmark.judgment import detects
from revelio_jax.benchmark.measurement import figure_names
from revelio_jax.benchmark.progress import Progress
from revelio_jax.cli import parse
from revelio_jax.config import Config
from revelio_jax.errors import InputError, memory_advice, report_errors
from revelio_jax.inputs import prompt_settings
from revelio_jax.pipelines import safety_checker
from revelio_jax.pipelines.loading import load_pipeline
from revelio_jax.pipelines.sampling import MEMORY_ADVICE
from revelio_jax.steering.labels import parse_concept, read_labeled
from revelio_jax.steering.steerer import Steerer
from revelio_jax.steering.strengths import parse_strengths

FLAGS = {
    "concept": ((), "label column and value, for example style=flat; may be repeated"),
    "strength": ("-0.25,-0.5,-0.75,-1,-1.5,-2", "strengths to choose from, separated by commas; negated for adding"),
    "prompts": (80, "prompts with the concept, and as many without it; half of them choose the strength"),
    "seeds": (3, "images per prompt"),
}


@memory_advice(MEMORY_ADVICE)
def main(argv: Sequence[str]) -> None:
    config, flags = parse(["revelio_jax.benchmark.table", *argv], __doc__, **FLAGS)
    labeled = read_labeled(config.steer.prompts)
    if line := prompt_settings.unused_seed_line(labeled, config.steer):
        print(line)
    if not flags["concept"]:
        raise InputError("--concept is missing; it is a label column and value, for example style=flat")
    concepts = [parse_concept(concept, labeled) for concept in flags["concept"]]
    strengths = parse_strengths(flags["strength"])
    judge = load_judge(config.steer.judge, config.steer.judge_settings)
    for column, _ in concepts:
        check_column(column, judge.columns)
    if detects(judge) and len(set(concepts)) > 1:
        raise InputError(
            f"--concept is given {len(concepts)} times; the judge {judge.record['name']} detects only one concept"
        )
    if not config.run:
        raise InputError("config.run is not set; it must be the folder of a run, for example runs/mini_sd")
    files.check_writable(config.run, "config.run")
    steerer = Steerer.from_pretrained(pathlib.Path(config.run, "export"))
    pipe = load_pipeline(config.model)

    seeds = list(range(flags["seeds"]))
    folder = pathlib.Path(config.run, "steering")
    folder.mkdir(parents=True, exist_ok=True)
    settings = settings_of(config, flags["prompts"], seeds, pathlib.Path(config.run, "export"))
    saved = Progress(folder, settings | {"judge": judge.record})
    results = []
    for column, value in concepts:
        bench = make_bench(labeled, column, value, flags["prompts"], judge.columns)
        results.append(compare(config, steerer, pipe, judge, bench, labeled, strengths, seeds, saved))
        bench = make_adding_bench(labeled, column, value, flags["prompts"], judge.columns)
        if bench.with_concept:
            negated = [-strength for strength in strengths]
            results.append(compare(config, steerer, pipe, judge, bench, labeled, negated, seeds, saved))
    if saved.reused:
        print(f"{saved.reused} measurements of an earlier run of this command are reused")
    record = {
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": config.model.id,
        "site": steerer.site,
        "seeds": seeds,
        "steps": config.steer.steps,
        "guidance": config.steer.guidance,
        "pooled": config.steer.pooled,
        "safety_checker": safety_checker.is_active(pipe),
        "torch": torch.__version__,
        "judge": judge.record,
        "concepts": results,
    }
    files.write_text(folder / "table.json", json.dumps(record, indent=1) + "\n")
    text = "\n".join(markdown(result) for result in results)
    files.write_text(folder / "table.md", text)
    saved.remove()
    print(text)
    print(f"table: {folder / 'table.md'}")


def settings_of(config: Config, prompts: int, seeds: list[int], export: pathlib.Path) -> dict[str, typing.Any]:
    """Return the settings that determine the measurements of a concept, a rule and a strength.

    Files of a local model and of the judge count by their sizes and times, other files by their content. Not included:
    the files of a model from the hub, whose newest revision can change, other libraries, the device, and local changes
    of the code.
    """
    mask = pathlib.Path(config.steer.mask or "")
    return {
        "version": importlib.metadata.version("revelio_jax"),
        "torch": torch.__version__,
        "diffusers": importlib.metadata.version("diffusers"),
        "model": dataclasses.asdict(config.model),
        "model_files": _file_states(config.model.id),
        "steer": dataclasses.asdict(config.steer),
        "mask": files.sha256(mask) if mask.is_file() else None,
        "judge_files": _file_states(config.steer.judge),
        "prompts": [prompts, files.sha256(pathlib.Path(config.steer.prompts or ""))],
        "seeds": seeds,
        "sae": [files.sha256(file) for file in sorted(export.glob("*")) if file.suffix in (".json", ".safetensors")],
    }


def _file_states(location: str | None) -> list[tuple[str, int, int]]:
    """Return path, size and modification time in nanoseconds of the files of a local folder; none for a hub id."""
    folder = pathlib.Path(shipped.locate(location)) if location else None
    if folder is None or not folder.is_dir():
        return []
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def markdown(result: Comparison) -> str:
    """Return the Markdown table of one concept, from :func:`revelio_jax.benchmark.comparison.compare`."""
    figures = figure_names(result["rows"][0])
    action = "added to prompts without its label" if result["adding"] else "removed"
    lines = [
        f"**{result['concept']}, {action}** ({result['prompts']} prompts)",
        "",
        f"| rule | strength | {' | '.join(figures.values())} | worst |",
        "|---" * (3 + len(figures)) + "|",
    ]
    for row in result["rows"]:
        cells = ["{mean:.3f} ({low:.2f}-{high:.2f})".format(**row[name]) for name in figures]
        lines.append(f"| {row['rule']} | {row['strength']:g} | {' | '.join(cells)} | {row['worst']:.3f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
