"""Compare methods that remove a concept: steering rules, a difference of means, and the methods of others.

    revelio benchmark --config mini_sd --concept "style=glossy 3d"
    revelio benchmark --config mini_sd --dry_run
    revelio benchmark compare runs/a runs/b
    revelio benchmark ablations runs/a runs/b runs/c

Draws the images of every method, strength, prompt and seed, judges them, and writes into runs/<name>/benchmark/:
results.json, results.csv, results.md, one plot per task and pictures.html, whose images are blurred unless --unblurred
is given. A stopped command continues where it was. With --worker 0/4, a process draws its share of the images and
ends; run the command without --worker afterwards.

Methods with several strengths are compared at the one that is best on every second prompt. The figures are those of
the other prompts, which only this strength draws. A concept is a label of config.steer.prompts or a text, and
config.benchmark.prompt_sets adds prompts.
"""

import contextlib
import datetime
import json
import pathlib
import sys
import typing
from collections.abc import Sequence

import torch

from revelio_jax import file_locks, files
from revelio_jax.benchmark import ablation_command, estimate, frontier, pictures, results
from revelio_jax.benchmark.choice import (
    choose_variants,
    plain_of,
    shots_that_choose,
    to_choose_from,
)
from revelio_jax.benchmark.drawing import draw, parse_worker, shots_of
from revelio_jax.benchmark.identity import identity, sae_settings
from revelio_jax.benchmark.images import Shot
from revelio_jax.benchmark.judges import check_noun_judge, columns_of, load_judge
from revelio_jax.benchmark.judgment import Judge, NounJudge, detects
from revelio_jax.benchmark.judgments import Judgments
from revelio_jax.benchmark.method_times import MethodTime, machine
from revelio_jax.benchmark.quality_measures import Measure, check_measures, parse_measures
from revelio_jax.benchmark.reporting import measure_task
from revelio_jax.benchmark.results import TaskResult
from revelio_jax.benchmark.results_comparison import compare
from revelio_jax.benchmark.tasks import ALIGNMENT, NEIGHBORS, OTHER, ROLES, NamedSet, Task, make_tasks, read_sets
from revelio_jax.benchmark.variants import MethodSpec, TaskMethods, check_limits, check_specs, parse_method
from revelio_jax.cli import parse
from revelio_jax.config import Config
from revelio_jax.errors import InputError, memory_advice, report_errors, require
from revelio_jax.inputs import prompt_settings
from revelio_jax.pipelines import safety_checker
from revelio_jax.pipelines.loading import load_pipeline, quiet
from revelio_jax.pipelines.sampling import MEMORY_ADVICE
from revelio_jax.steering.labels import LabeledPrompt, read_labeled
from revelio_jax.steering.learned_concepts import file_name
from revelio_jax.steering.steerer import Steerer

FLAGS = {
    "concept": ((), "concept, for example style=flat; may be repeated; empty: config.benchmark.concepts"),
    "dry_run": (False, "print the number of images, the hours and the gigabytes, and draw nothing"),
    "seconds": (
        None,
        "seconds of a plain image on your machine, for --dry_run; None: from the paper, if it has the model",
    ),
    "worker": (None, "NUMBER/COUNT: draw this share of the images and end, for example 0/4"),
    "unblurred": (False, "do not blur the images in pictures.html"),
}


class Plan(typing.NamedTuple):
    """A benchmark that is read but not loaded: methods, labeled prompts, concepts, prompt sets and measures."""

    config: Config
    specs: list[MethodSpec]
    labeled: list[LabeledPrompt]
    concepts: list[str]
    sets: list[NamedSet]
    measures: list[Measure]

    @property
    def folder(self) -> pathlib.Path:
        """Return the folder of the results."""
        return pathlib.Path(self.config.run or "", "benchmark")

    @property
    def export(self) -> pathlib.Path | None:
        """Return the SAE folder, or None if no method uses one."""
        return pathlib.Path(self.config.run or "", "export") if any(s.is_steering for s in self.specs) else None

    @property
    def has_nouns(self) -> bool:
        """Return whether a prompt set has nouns that must stay visible."""
        return any(each.role in (NEIGHBORS, ALIGNMENT) for each in self.sets)

    def tasks(self, judged: tuple[str, ...]) -> list[Task]:
        """Return the tasks of all concepts for a judge of the columns ``judged``."""
        config = self.config
        return [
            task
            for concept in self.concepts
            for task in make_tasks(concept, self.labeled, self.sets, config.benchmark, config.steer, judged)
        ]

    def check_measures(self, tasks: Sequence[Task]) -> None:
        """Raise InputError if a measure of quality lacks images."""
        seeds = self.config.benchmark.seeds
        shots = {
            task.name: [shot for shot in shots_of(task.reported, seeds) if shot.prompt.role == OTHER]
            for task in tasks
            if not task.adding
        }
        check_measures(self.measures, shots)


@memory_advice(MEMORY_ADVICE)
def main(argv: Sequence[str]) -> None:
    for name, run in (("compare", compare), ("ablations", ablation_command.main)):
        if list(argv[:1]) == [name]:
            run(argv[1:])
            return
    config, flags = parse(["revelio_jax.benchmark.command", *argv], __doc__, **FLAGS)
    worker = parse_worker(flags["worker"])
    plan = make_plan(config, flags["concept"])
    if flags["dry_run"]:
        print_estimate(plan, flags["seconds"])
        return
    require("matplotlib", "plot", "the plots")
    quiet()
    files.check_writable(plan.folder, "config.run")
    judge = load_judge(config.steer.judge, config.steer.judge_settings)
    tasks = plan.tasks(judge.columns)
    if detects(judge) and len(plan.concepts) > 1:
        raise InputError(
            f"--concept is given {len(plan.concepts)} times; the judge {judge.record['name']} detects only one concept"
        )
    check_specs(plan.specs, tasks, config.model.family)
    plan.check_measures(tasks)
    for each in plan.measures if worker is None else ():
        each.load()
    plan.check_measures(tasks)  # the widths of all networks are known now
    steerer = Steerer.from_pretrained(plan.export) if plan.export else None
    if steerer:
        check_limits(plan.specs, steerer.site)
    pipe = load_pipeline(config.model)
    loaded = [
        (task, TaskMethods(task, config, pipe, steerer, plan.labeled, identity(config, plan.export))) for task in tasks
    ]
    plan.folder.mkdir(parents=True, exist_ok=True)
    busy = f"{plan.folder} is used by another benchmark; end it first, or use --worker"
    with contextlib.nullcontext() if worker else file_locks.refusing(plan.folder, busy):
        images, judgments = plan.folder / "images", Judgments(plan.folder / "judgments", judge)
        measured: list[TaskResult] = []
        times: dict[str, MethodTime] = {}
        for task, methods in loaded:
            choice = choose_variants(task, methods, plan.specs, images, judgments, config.steer, worker)
            shots = shots_of(task.reported, config.benchmark.seeds)
            draw(methods, choice.reported, shots, images, config.steer, worker)
            if not worker:
                measured.append(
                    measure_task(task, methods, choice, judge, pipe, config, plan.measures, plan.folder, times)
                )
        if worker:
            print(f"worker {worker.number} of {worker.count}: all images are drawn; omit --worker to write the results")
        else:
            write(plan, loaded, measured, judge, pipe, steerer, blurred=not flags["unblurred"])


def make_plan(config: Config, concepts: Sequence[str]) -> Plan:
    """Read the inputs of a benchmark. Raise InputError if one is missing or not allowed."""
    settings, steer = config.benchmark, config.steer
    if not config.run:
        raise InputError("config.run is not set; it must be the folder of a run, for example runs/mini_sd")
    if not (names := list(dict.fromkeys(concepts or settings.concepts))):
        raise InputError("--concept is missing; it is a label column and value, for example style=flat, or a text")
    specs = [parse_method(text, settings.strengths) for text in dict.fromkeys(("plain", *settings.methods))]
    labeled = read_labeled(steer.prompts) if steer.prompts else []
    if line := prompt_settings.unused_seed_line(labeled, steer):
        print(line)
    sets = read_sets(settings, steer)
    plan = Plan(config, specs, labeled, names, sets, parse_measures(settings.quality))
    if plan.has_nouns:
        check_noun_judge(steer.judge)
    return plan


def print_estimate(plan: Plan, seconds: str | None) -> None:
    """Print images, hours and gigabytes of a benchmark. Raise InputError if ``seconds`` is not a positive number."""
    steer = plan.config.steer
    try:
        plain = (
            float(seconds)
            if seconds
            else estimate.seconds_per_image(plan.config.model.id or "", steer.steps, steer.width, steer.height)
        )
        if plain is not None and not 0 < plain < float("inf"):
            raise ValueError
    except ValueError:
        raise InputError(f"--seconds is {seconds!r}; it must be a number above 0") from None
    images: dict[str, list[Shot]] = {}
    tasks = plan.tasks(columns_of(steer.judge, steer.judge_settings))
    plan.check_measures(tasks)
    for task in tasks:
        choosing, reporting = shots_that_choose(task), shots_of(task.reported, plan.config.benchmark.seeds)
        variants = TaskMethods(task, plan.config, None, None, plan.labeled, {}).variants(plan.specs)
        several = to_choose_from(variants)
        reported = several if not choosing else {variant.method.text: variant for variant in several}.values()
        for variant in [plain_of(variants), *several] if several else []:
            images.setdefault(variant.method.name, []).extend(choosing)
        for variant in [*(each for each in variants if each not in several), *reported]:
            images.setdefault(variant.method.name, []).extend(reporting)
        action = "added" if task.adding else "removed"
        print(
            f"{task.name}, {action}: {len(task.prompts)} prompts, {len(reporting)} images per method"
            + (f" and {len(choosing)} per strength to choose from" if several and choosing else "")
        )
    total = estimate.estimate(images, plain)
    for name, shots in images.items():
        print(f"  {name}: {len(shots):,} images")
    hours = (
        "unknown hours: set --seconds"
        if total.hours is None
        else f"{total.hours:.1f} hours at {plain:.3g} s per plain image"
    )
    source = "" if seconds or plain is None else " (on an L40S, from arXiv 2501.19066)"
    print(f"in all: {total.images:,} images, {hours}{source}, {total.gigabytes:.1f} GB on disk")


def write(
    plan: Plan,
    loaded: Sequence[tuple[Task, TaskMethods]],
    measured: Sequence[TaskResult],
    judge: Judge,
    pipe: typing.Any,
    steerer: Steerer | None,
    blurred: bool,
) -> None:
    """Write the results, the table, the plots and the page of pictures, and print the table."""
    folder, config = plan.folder, plan.config
    record = {
        "format": 1,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **identity(config, plan.export),
        "autoencoder": steerer and sae_settings(steerer.sae),
        "scheduler": {"name": type(pipe.scheduler).__name__, **_plain_values(pipe.scheduler.config)},
        "guidance": config.steer.guidance,
        "height": config.steer.height,
        "width": config.steer.width,
        "safety_checker": safety_checker.is_active(pipe),
        "judge": judge.record,
        "noun_judge": judge.noun_record if plan.has_nouns and isinstance(judge, NounJudge) else None,
        "quality": {name: measure.record for measure in plan.measures for name in measure.names},
        "machine": machine(torch.device(pipe._execution_device)),
        "tasks": measured,
    }
    files.write_text(folder / "results.json", json.dumps(record, indent=1) + "\n")
    files.write_text(folder / "results.csv", results.csv_text(measured))
    text = "\n".join(results.markdown(result) for result in measured)
    files.write_text(folder / "results.md", text)
    for result in measured:
        name = f"{file_name(result['concept'])}_{'added' if result['adding'] else 'removed'}.png"
        with files.replacing(folder / name) as part:
            frontier.draw(result).savefig(part, format="png")
    shown = [
        (result, _shown(task, config.benchmark.pictures)) for (task, _), result in zip(loaded, measured, strict=True)
    ]
    title = f"Methods on {config.model.id}"
    files.write_text(folder / "pictures.html", pictures.page(shown, folder / "images", title, blurred))
    print(text)
    print(f"results: {folder / 'results.md'}, results.json, results.csv, pictures.html and *.png")


def _shown(task: Task, count: int) -> list[Shot]:
    return [Shot(prompt, 0) for role in ROLES for prompt in task.reported.of_role(role)[:count]]


def _plain_values(config: typing.Any) -> dict[str, typing.Any]:
    """Return the values of a scheduler's config that JSON has."""
    return {key: value for key, value in dict(config).items() if isinstance(value, str | int | float | bool | None)}


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
