"""Measure the figures that a benchmark reports: judge the drawn images, measure their quality, and time the methods."""

import pathlib
import typing
from collections.abc import Sequence

from revelio_jax.benchmark.choice import Choice, measure_variants, plain_of
from revelio_jax.benchmark.drawing import shots_of
from revelio_jax.benchmark.images import ImageFolder
from revelio_jax.benchmark.judgment import Judge, NounJudge
from revelio_jax.benchmark.judgments import Judgments, NounJudgments
from revelio_jax.benchmark.method_times import MethodTime, time_methods
from revelio_jax.benchmark.noun_figures import measure_nouns
from revelio_jax.benchmark.quality_measures import Measure, measure_quality
from revelio_jax.benchmark.results import Row, TaskResult
from revelio_jax.benchmark.tasks import OTHER, ROLES, Task
from revelio_jax.benchmark.variants import TaskMethods
from revelio_jax.config import Config


def measure_task(
    task: Task,
    methods: TaskMethods,
    choice: Choice,
    judge: Judge,
    pipe: typing.Any,
    config: Config,
    measures: Sequence[Measure],
    folder: pathlib.Path,
    times: dict[str, MethodTime],
) -> TaskResult:
    """Return the result of a task whose images are drawn into ``folder``.

    ``times`` are those of the methods, by their text, that an earlier task has timed, because the concept does not
    change the time. Those of this task are added.
    """
    settings, images = config.benchmark, folder / "images"
    judgments = Judgments(folder / "judgments", judge)
    figures = measure_variants(task.reported, choice.reported, images, judgments, settings.seeds)
    shots = shots_of(task.reported, settings.seeds)
    others = [shot for shot in shots if shot.prompt.role == OTHER]
    plain = ImageFolder(images, plain_of(choice.reported).key)
    nouns = None
    if isinstance(judge, NounJudge) and any(shot.prompt.nouns for shot in shots):
        nouns = NounJudgments(folder / "nouns", judge)
    if settings.repetitions:
        untimed = {each.key: each.method.text for each in choice.chosen if each.method.text not in times}
        variants = [each for each in choice.chosen if each.key in untimed]
        file = folder / "times.jsonl"
        timed = time_methods(methods, variants, shots, pipe, config.steer, settings.repetitions, file)
        times |= {untimed[key]: time for key, time in timed.items()}
    rows: list[Row] = []
    for variant in choice.variants:
        own, is_reported = ImageFolder(images, variant.key), variant.key in figures
        rows.append(
            {
                "method": variant.method.text,
                "strength": variant.strength,
                "chosen": variant in choice.chosen,
                "key": variant.key,
                "figures": figures.get(variant.key),
                "choosing": choice.figures.get(variant.key),
                "quality": measure_quality(measures, own, plain, others, settings.seeds, folder / "features")
                if is_reported
                else {},
                "nouns": measure_nouns(nouns, own, plain, shots, settings.seeds) if nouns and is_reported else None,
                "time": times.get(variant.method.text) if variant in choice.chosen else None,
            }
        )
    return {
        "concept": task.name,
        "adding": task.adding,
        "sets": {name: dict(origin) for name, origin in task.sets.items()},
        "prompts": {role: len(task.reported.of_role(role)) for role in ROLES},
        "seeds": settings.seeds,
        "rows": rows,
    }
