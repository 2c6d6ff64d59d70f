"""Compare methods that remove a concept: steering rules, a difference of means, and the methods of others.

    revelio benchmark --config mini_sd --concept "style=glossy 3d"
    revelio benchmark --config mini_sd --dry_run
    revelio benchmark compare runs/a runs/b
    revelio benchmark ablations runs/a runs/b runs/c

Draws the images of every method, strength, prompt and seed, judges them, and writes into runs/<name>/benchmark/:
results.json, results.csv, results.md, one plot per task and pictures.html, whose images are blurred unless --unblurred
is given. A stopped command continues where it was. With --worker 0/4, a process draws its share of the images and
ends; run the command without --worker afterwards.

Methods with strengths are compared at the strength that is best on every second prompt; the figures are those of the
other prompts. A concept is a label of config.steer.prompts or a text, and config.benchmark.prompt_sets adds prompts.
"""

import datetime
import json
import pathlib
import sys
import typing
from collections.abc import Sequence

import numpy as np
import torch

from revelio_jax import file_locks, files
from revelio_jax.benchmark import ablation_command, estimate, frontier, pictures, results
from revelio_jax.benchmark.drawing import Worker, draw, parse_worker, shots_of
from revelio_jax.benchmark.figures import choose, has_retention, measure
from revelio_jax.benchmark.identity import identity, sae_settings
from revelio_jax.benchmark.images import ImageFolder, Shot
from revelio_jax.benchmark.judges import columns_of, load_judge
from revelio_jax.benchmark.judgment import Judge, detects
from revelio_jax.benchmark.judgments import Judgments
from revelio_jax.benchmark.method_times import machine, time_methods
from revelio_jax.benchmark.quality import pixel_rmse
from revelio_jax.benchmark.results import Row, TaskResult
from revelio_jax.benchmark.results_comparison import compare
from revelio_jax.benchmark.tasks import CONCEPT, OTHER, NamedSet, Task, make_tasks, read_sets
from revelio_jax.benchmark.variants import MethodSpec, TaskMethods, Variant, check_limits, check_specs, parse_method
from revelio_jax.cli import parse
from revelio_jax.config import Config
from revelio_jax.errors import InputError, memory_advice, report_errors, require
from revelio_jax.inputs import prompt_settings
from revelio_jax.pipelines import safety_checker
from revelio_jax.pipelines.loading import load_pipeline
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
    """A benchmark that is read but not loaded: methods, labeled prompts, concepts and prompt sets."""

    config: Config
    specs: list[MethodSpec]
    labeled: list[LabeledPrompt]
    concepts: list[str]
    sets: list[NamedSet]

    @property
    def folder(self) -> pathlib.Path:
        """Return the folder of the results."""
        return pathlib.Path(self.config.run or "", "benchmark")

    @property
    def export(self) -> pathlib.Path | None:
        """Return the SAE folder, or None if no method uses one."""
        return pathlib.Path(self.config.run or "", "export") if any(s.is_steering for s in self.specs) else None

    def tasks(self, judged: tuple[str, ...]) -> list[Task]:
        """Return the tasks of all concepts for a judge of the columns ``judged``."""
        config = self.config
        return [
            task
            for concept in self.concepts
            for task in make_tasks(concept, self.labeled, self.sets, config.benchmark, config.steer, judged)
        ]


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
    files.check_writable(plan.folder, "config.run")
    judge = load_judge(config.steer.judge, config.steer.judge_settings)
    tasks = plan.tasks(judge.columns)
    if detects(judge) and len(plan.concepts) > 1:
        raise InputError(
            f"--concept is given {len(plan.concepts)} times; the judge {judge.record['name']} detects only one concept"
        )
    check_specs(plan.specs, tasks, config.model.family)
    steerer = Steerer.from_pretrained(plan.export) if plan.export else None
    if steerer:
        check_limits(plan.specs, steerer.site)
    pipe = load_pipeline(config.model)
    loaded = [
        (task, TaskMethods(task, config, pipe, steerer, plan.labeled, identity(config, plan.export))) for task in tasks
    ]
    if worker:
        count = draw_all(plan, loaded, worker)
        print(f"worker {worker.number} of {worker.count} has drawn {count} images; after all workers, omit --worker")
        return
    plan.folder.mkdir(parents=True, exist_ok=True)
    with file_locks.refusing(plan.folder, f"{plan.folder} is used by another benchmark; end it first, or use --worker"):
        draw_all(plan, loaded, None)
        measured = [measure_task(plan, task, methods, judge, pipe) for task, methods in loaded]
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
    return Plan(config, specs, labeled, names, read_sets(settings, steer))


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
    for task in tasks:
        shots = shots_of(task, plan.config.benchmark.seeds)
        for variant in TaskMethods(task, plan.config, None, None, plan.labeled, {}).variants(plan.specs):
            images.setdefault(variant.method.name, []).extend(shots)
        action = "added" if task.adding else "removed"
        print(f"{task.name}, {action}: {len(task.prompts)} prompts, {len(shots)} images per method and strength")
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


def draw_all(plan: Plan, loaded: Sequence[tuple[Task, TaskMethods]], worker: Worker | None) -> int:
    """Draw the missing images of all tasks and return their number."""
    count = 0
    for task, methods in loaded:
        shots = shots_of(task, plan.config.benchmark.seeds)
        count += draw(methods, methods.variants(plan.specs), shots, plan.folder / "images", plan.config.steer, worker)
    return count


def measure_task(plan: Plan, task: Task, methods: TaskMethods, judge: Judge, pipe: typing.Any) -> TaskResult:
    """Judge the images of a task, choose strengths and time the methods."""
    settings, images = plan.config.benchmark, plan.folder / "images"
    shots, judgments = shots_of(task, settings.seeds), Judgments(plan.folder / "judgments", judge)
    variants = methods.variants(plan.specs)
    plain = next(variant for variant in variants if variant.method.name == "plain")
    folders = {variant.key: ImageFolder(images, variant.key) for variant in variants}
    labels = {key: judgments.labels(folder, shots) for key, folder in folders.items()}
    others = [shot for shot in shots if shot.prompt.role == OTHER]
    figures = {
        key: measure(
            task,
            labels[key],
            labels[plain.key],
            _distances(folder, folders[plain.key], others, settings.seeds),
            settings.seeds,
        )
        for key, folder in folders.items()
    }
    chosen = [
        variant for spec in plan.specs if (variant := _chosen([v for v in variants if v.method is spec], figures))
    ]
    times = (
        time_methods(methods, chosen, shots, pipe, plan.config.steer, settings.repetitions, plan.folder / "times.jsonl")
        if settings.repetitions
        else {}
    )
    rows: list[Row] = [
        {
            "method": variant.method.text,
            "strength": variant.strength,
            "chosen": variant in chosen,
            "key": variant.key,
            "figures": figures[variant.key],
            "time": times.get(variant.key),
        }
        for variant in variants
    ]
    reported = {role: len(task.reported(role)) for role in (CONCEPT, OTHER)}
    return {
        "concept": task.name,
        "adding": task.adding,
        "sets": {name: dict(origin) for name, origin in task.sets.items()},
        "prompts": reported,
        "seeds": settings.seeds,
        "rows": rows,
    }


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


def _chosen(variants: list[Variant], figures: dict[str, typing.Any]) -> Variant | None:
    if not variants:
        return None
    own = [figures[variant.key] for variant in variants]
    index = choose(own, [variant.strength for variant in variants], has_retention(own[0]))
    return None if index is None else variants[index]


def _distances(images: ImageFolder, plain: ImageFolder, shots: list[Shot], seeds: int) -> np.ndarray | None:
    """Return the distance of each image to the plain one, [prompts, seeds]; None without images."""
    if not shots:
        return None
    pairs = [(images.read(shot)[0], plain.read(shot)[0]) for shot in shots]
    return np.array([pixel_rmse(a[None], b[None])[0] for a, b in pairs]).reshape(-1, seeds)


def _shown(task: Task, count: int) -> list[Shot]:
    return [Shot(prompt, 0) for role in (CONCEPT, OTHER) for prompt in task.reported(role)[:count]]


def _plain_values(config: typing.Any) -> dict[str, typing.Any]:
    """Return the values of a scheduler's config that JSON has."""
    return {key: value for key, value in dict(config).items() if isinstance(value, str | int | float | bool | None)}


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
