"""The tasks of a benchmark: a concept to remove or to add, and prompts that show the effect and the retention."""

import dataclasses
import hashlib
import json
import random
import typing
from collections.abc import Callable, Mapping, Sequence

from revelio_jax.benchmark import words
from revelio_jax.benchmark.bench import make_adding_bench, make_bench
from revelio_jax.benchmark.judgment import DETECTED
from revelio_jax.config import BenchmarkConfig, SteerConfig
from revelio_jax.config.fields import field
from revelio_jax.config.schema import check_fields
from revelio_jax.errors import InputError
from revelio_jax.inputs import prompt_settings
from revelio_jax.inputs.prompt_sets import PromptSet, read_prompt_set
from revelio_jax.steering.labels import LabeledPrompt, find_concept, parse_concept

CONCEPT, OTHER, NEIGHBORS, ALIGNMENT = "concept", "other", "neighbors", "alignment"
"""Roles: prompts whose images show the concept without steering; prompts that steering must not change; prompts of one
benign neighbor of the concept each; prompts with the concept and other nouns, which must stay visible."""
ROLES = (CONCEPT, OTHER, NEIGHBORS, ALIGNMENT)
NOUN_ROLES = {"hub_pinpoint": NEIGHBORS, "hub_alignment": ALIGNMENT}
"""The roles of the layouts whose prompts have nouns."""
MOST_CHOOSING = 80  # prompts of a role; more would cost images and hardly change the choice
LABELED = "labeled"
FIELD = "config.benchmark.prompt_sets"


@dataclasses.dataclass(frozen=True)
class TaskPrompt:
    """A prompt and the settings of its image.

    ``set`` is the name of its prompt set and ``role`` is one of :data:`ROLES`. ``labels`` are the labels that its image
    shows without steering, by column; empty if they are unknown. ``nouns`` are the things that must be visible; only
    prompts of the roles :data:`NEIGHBORS` and :data:`ALIGNMENT` have them.
    """

    set: str
    id: str
    role: str
    prompt: str
    seed: int | None
    guidance: float
    height: int
    width: int
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    nouns: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """A concept and the prompts that measure its removal, or its addition if ``adding``.

    ``column`` is the label column of the concept, None if it is not a label. ``other`` is the label column that must be
    retained, None if there is none. ``prompts`` are in the order of :data:`ROLES`. ``sets`` records the origin of each
    prompt set.
    """

    column: str | None
    value: str
    other: str | None
    adding: bool
    prompts: tuple[TaskPrompt, ...]
    sets: Mapping[str, Mapping[str, typing.Any]]

    @property
    def name(self) -> str:
        """Return the concept as on the command line."""
        return f"{self.column}={self.value}" if self.column else self.value

    @property
    def phrases(self) -> list[str]:
        """Return the phrases of the concept, which the concept's text separates by commas."""
        return [phrase.strip() for phrase in self.value.split(",") if phrase.strip()]

    def of_role(self, role: str) -> list[TaskPrompt]:
        """Return the prompts of a role."""
        return [prompt for prompt in self.prompts if prompt.role == role]

    @property
    def choosing(self) -> "Task":
        """Return the task with the prompts that choose strengths.

        Of the roles concept and other, every second prompt chooses, at most :data:`MOST_CHOOSING` of each role. Prompts
        of other roles choose nothing.
        """
        return self._part(lambda role, number: role in (CONCEPT, OTHER) and _chooses(number))

    @property
    def reported(self) -> "Task":
        """Return the task with all other prompts: they report the figures, and methods must not learn from them."""
        return self._part(lambda role, number: role not in (CONCEPT, OTHER) or not _chooses(number))

    @property
    def has_retention(self) -> bool:
        """Return whether the prompts measure a retention, which the choice of a strength weighs against the effect."""
        return bool(self.of_role(OTHER)) or any(self.other in prompt.labels for prompt in self.prompts)

    def _part(self, is_in: Callable[[str, int], bool]) -> "Task":
        """Return the task with the prompts for whose role, and number in their role, ``is_in`` is true."""
        numbered = [(role, number, prompt) for role in ROLES for number, prompt in enumerate(self.of_role(role))]
        return dataclasses.replace(self, prompts=tuple(each for role, number, each in numbered if is_in(role, number)))


def _chooses(number: int) -> bool:
    return number % 2 == 0 and number < 2 * MOST_CHOOSING


@dataclasses.dataclass(frozen=True)
class SetSettings:
    """The settings of a prompt set in config.benchmark.prompt_sets."""

    role: str | None = field(
        None,
        "what the prompts measure; None: neighbors and alignment for the layouts of HUB, otherwise concept",
        choices=ROLES,
    )
    layout: str | None = field(None, "layout of the file; None: found by its columns")
    category: str | None = field(None, "use only the prompts of this category; None: all")
    n: int | None = field(None, "number of prompts, drawn at random; None: all", low=1)
    guidance: float | None = field(None, "guidance scale of prompts without one; None: that of the authors", low=0.0)


@dataclasses.dataclass(frozen=True)
class NamedSet:
    """A prompt set with its role and its name in the results."""

    name: str
    role: str
    prompts: PromptSet


def read_sets(settings: BenchmarkConfig, steer: SteerConfig) -> list[NamedSet]:
    """Read the prompt sets of config.benchmark.prompt_sets. Raise InputError if one cannot be read."""
    sets: list[NamedSet] = []
    for text in settings.prompt_sets:
        location, values = words.parse(FIELD, text)
        values = {
            key: float(value) if key == "guidance" and type(value) is int else value for key, value in values.items()
        }
        chosen = check_fields(f"{FIELD}: {location}", SetSettings, values)
        prompts = read_prompt_set(
            location, chosen.layout, guidance=chosen.guidance, width=steer.width, height=steer.height
        )
        if chosen.category:
            prompts = prompts.in_category(chosen.category)
        if chosen.n and chosen.n < len(prompts.records):
            records = random.Random(0).sample(prompts.records, chosen.n)
            prompts = dataclasses.replace(prompts, records=tuple(records))
        role = chosen.role or NOUN_ROLES.get(prompts.layout, CONCEPT)
        has_nouns = role in (NEIGHBORS, ALIGNMENT)
        if has_nouns:
            _check_nouns(location, role, prompts)
        name = location.rstrip("/").rpartition("/")[2].partition(".")[0] + (
            f":{chosen.category}" if chosen.category else ""
        )
        name += f":{role}" if has_nouns else ""  # HUB's files of one concept have the same name in each folder
        if name in (LABELED, *(each.name for each in sets)):
            raise InputError(f"{FIELD} has two prompt sets called {name!r}; rename a file or use one of them")
        sets.append(NamedSet(name, role, prompts))
    return sets


def _check_nouns(location: str, role: str, prompts: PromptSet) -> None:
    """Raise InputError if a prompt has no nouns, or several although it draws one neighbor."""
    for record in prompts.records:
        if not record.nouns or (role == NEIGHBORS and len(record.nouns) > 1):
            wanted = "exactly one noun" if role == NEIGHBORS else "at least one noun"
            raise InputError(
                f"{FIELD}: {location} has the role {role}, and prompt {record.id} has {len(record.nouns)} nouns; each "
                f"prompt needs {wanted} in the column nouns, as in HUB's files"
            )


def make_tasks(
    concept: str,
    labeled: list[LabeledPrompt],
    sets: Sequence[NamedSet],
    settings: BenchmarkConfig,
    steer: SteerConfig,
    judged: tuple[str, ...],
) -> list[Task]:
    """Return the task of removing a concept and, if labeled prompts leave out its label, that of adding it.

    ``judged`` are the columns of the judge. Raise InputError if the judge cannot measure the concept, or if there are
    no prompts with it.
    """
    label = parse_concept(concept, labeled) if "=" in concept and labeled else find_concept(concept, labeled)
    column, value = label or (None, concept)
    if column is None and judged != (DETECTED,):
        raise InputError(
            f"--concept is {concept!r}, which is not column=value of config.steer.prompts; the judge predicts only "
            f"{', '.join(judged)}"
        )
    tasks = [_removal(column, value, labeled, sets, settings, steer, judged)]
    if not tasks[0].of_role(CONCEPT):
        raise InputError(
            f"--concept is {concept!r}; there are no prompts with it: it must be a label of config.steer.prompts, or "
            f"{FIELD} must have a prompt set of the role {CONCEPT}"
        )
    if settings.add and column is not None:
        bench = make_adding_bench(labeled, column, value, settings.prompts, judged)
        if bench.with_concept:
            prompts = _labeled(bench.with_concept, CONCEPT, steer)
            tasks.append(Task(column, value, bench.other, True, tuple(prompts), {LABELED: _origin(steer, prompts)}))
    return tasks


def _removal(
    column: str | None,
    value: str,
    labeled: list[LabeledPrompt],
    sets: Sequence[NamedSet],
    settings: BenchmarkConfig,
    steer: SteerConfig,
    judged: tuple[str, ...],
) -> Task:
    prompts: list[TaskPrompt] = []
    origins: dict[str, Mapping[str, typing.Any]] = {}
    other = None
    if column is not None:
        bench = make_bench(labeled, column, value, settings.prompts, judged)
        prompts += _labeled(bench.with_concept, CONCEPT, steer) + _labeled(bench.without, OTHER, steer)
        other = bench.other
        origins[LABELED] = _origin(steer, prompts)
    for each in sets:
        prompts += [
            TaskPrompt(
                each.name,
                r.id,
                each.role,
                r.prompt,
                r.seed,
                r.guidance,
                r.height,
                r.width,
                nouns=r.nouns if each.role in (NEIGHBORS, ALIGNMENT) else (),
            )
            for r in each.prompts.records
        ]
        origins[each.name] = {
            "role": each.role,
            "location": each.prompts.location,
            "layout": each.prompts.layout,
            "defaults": dict(each.prompts.defaults),
            "prompts": len(each.prompts.records),
            "fingerprint": each.prompts.fingerprint,
        }
    prompts.sort(key=lambda each: ROLES.index(each.role))
    return Task(column, value, other, False, tuple(prompts), origins)


def _labeled(rows: list[LabeledPrompt], role: str, steer: SteerConfig) -> list[TaskPrompt]:
    return [
        TaskPrompt(
            LABELED,
            f"{role}-{number}",
            role,
            row["prompt"],
            own.seed,
            own.guidance,
            own.height,
            own.width,
            {key: label for key, label in row.items() if key != "prompt" and label},
        )
        for number, (row, own) in enumerate(zip(rows, prompt_settings.read(rows, steer), strict=True))
    ]


def _origin(steer: SteerConfig, prompts: Sequence[TaskPrompt]) -> dict[str, typing.Any]:
    # Without nouns, which labeled prompts do not have: results of earlier versions stay comparable.
    rows = [{key: value for key, value in dataclasses.asdict(prompt).items() if key != "nouns"} for prompt in prompts]
    text = json.dumps(rows, sort_keys=True)
    return {
        "location": steer.prompts,
        "prompts": len(prompts),
        "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
    }
