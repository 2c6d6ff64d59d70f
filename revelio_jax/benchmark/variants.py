"""The methods of a benchmark at each strength: how each one is opened, and everything that determines its images."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import typing
from collections.abc import Generator, Sequence

import torch

from revelio_jax.baselines import check_method, make_settings, open_method
from revelio_jax.baselines.methods import METHODS
from revelio_jax.baselines.sampler import Sampler
from revelio_jax.benchmark import words
from revelio_jax.benchmark.images import key_of
from revelio_jax.benchmark.tasks import Task
from revelio_jax.config import RULES, Config, did_you_mean
from revelio_jax.config.analysis import POSITIONS, check_schedule
from revelio_jax.config.fields import field
from revelio_jax.config.schema import check_fields
from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.sampling import call_settings, sample
from revelio_jax.steering.labels import LabeledPrompt
from revelio_jax.steering.latents import IMAGES, MOST, RATIO, at_most, find_latents, split
from revelio_jax.steering.learned_concepts import LearnedConcept, saved_concepts
from revelio_jax.steering.pooled import Pooled, pooled_of
from revelio_jax.steering.rules import (
    AUTO,
    FROM_LABELS,
    ON_BOTH_BRANCHES,
    ChangeFunction,
    Weight,
    change_function,
    resolve_rule,
)
from revelio_jax.steering.steerer import Steerer
from revelio_jax.steering.strengths import Key
from revelio_jax.steering.transport_learning import learn_transport
from revelio_jax.steering.vectors import difference_of_means
from revelio_jax.steering.where import NO_RAMP, Where

FIELD = "config.benchmark.methods"
SCHEDULE = {"timesteps", "ramp"}
STRENGTHS = "strengths"  # the setting of a method that replaces config.benchmark.strengths
LABELS, TEXT = "labels", "text"
ONE_BRANCH = tuple(rule for rule in RULES if rule not in ("auto", *ON_BOTH_BRANCHES))


@dataclasses.dataclass(frozen=True)
class SteerSettings:
    """Steer with the SAE."""

    rule: str = field("auto", "rule of the change", choices=RULES)
    learned: str = field(
        LABELS, "find the latents of the concept from labels, or from its text", choices=(LABELS, TEXT)
    )
    negative_branch: bool = field(
        True, "also steer the unconditional branch, in the opposite direction, if the rule does"
    )
    positions: str = field("all", "text encoders: tokens to steer", choices=POSITIONS)
    timesteps: tuple[float, ...] = field((), "denoiser: first and last timestep to steer; empty: all")
    ramp: tuple[float, ...] = field(
        NO_RAMP, "denoiser: factors on the strength at the first and at the last steered timestep"
    )

    def __post_init__(self):
        """Raise InputError if the timesteps or the ramp are malformed, or if the branch has no effect."""
        check_schedule(f"{FIELD}: steer", self.timesteps, self.ramp)
        if not self.negative_branch and self.rule in ONE_BRANCH:
            raise InputError(
                f"{FIELD}: steer.negative_branch is False; it must be True, because the rule {self.rule} never steers "
                "the unconditional branch"
            )

    @property
    def where(self) -> Where:
        """Return the limits of steering."""
        first_and_last = (self.timesteps[0], self.timesteps[1]) if self.timesteps else None
        return Where(positions=self.positions, steps=first_and_last, ramp=(self.ramp[0], self.ramp[1]))


@dataclasses.dataclass(frozen=True)
class MeansSettings:
    """Add the difference of the mean activations of prompts with and without the concept; no SAE is used."""


STEERING: dict[str, type[typing.Any]] = {
    "steer": SteerSettings,
    "difference_of_means": MeansSettings,
    "random_direction": SteerSettings,
}
"""The methods that have a strength, with their settings. ``random_direction`` is a control: a random direction that is
as long as the change by a rule."""


@dataclasses.dataclass(frozen=True)
class MethodSpec:
    """One entry of config.benchmark.methods. ``strengths`` is empty for a method that has none."""

    name: str
    settings: typing.Any
    text: str
    strengths: tuple[float, ...]

    @property
    def is_steering(self) -> bool:
        """Return whether the method has a strength, and can add a concept too."""
        return self.name in STEERING


@dataclasses.dataclass(frozen=True)
class Variant:
    """A method of a task at one strength; 0 for methods without a strength. ``key`` names the folder of its images."""

    method: MethodSpec
    strength: float
    key: str


def parse_method(text: str, strengths: tuple[float, ...]) -> MethodSpec:
    """Return the method that ``text`` describes. Raise InputError for an unknown method or setting."""
    name, settings = words.parse(FIELD, text)
    own = settings.pop(STRENGTHS, None)
    if name not in STEERING:
        if name not in METHODS:
            raise InputError(f"{FIELD} has {name!r}; {did_you_mean(name, (*METHODS, *STEERING), 'methods')}")
        if own is not None:
            raise InputError(f"{FIELD} has {text!r}; only {', '.join(STEERING)} have {STRENGTHS}")
        try:
            return MethodSpec(name, make_settings(name, settings), text, ())
        except InputError as error:
            raise InputError(f"{FIELD} has {text!r}: {error}") from error
    for setting in SCHEDULE & set(settings):
        if not (numbers := _numbers(settings[setting])):
            raise InputError(f"{FIELD} has {text!r}; {setting} must be two numbers, for example {setting}=1,0")
        settings[setting] = numbers
    made = check_fields(f"{FIELD}: {name}", STEERING[name], settings)
    if getattr(made, "learned", LABELS) == TEXT and made.rule in FROM_LABELS:
        raise InputError(f"{FIELD} has {text!r}; the rule {made.rule} needs learned={LABELS}")
    return MethodSpec(name, made, text, strengths if own is None else _parse_strengths(text, own))


def check_specs(specs: Sequence[MethodSpec], tasks: Sequence[Task], family: str) -> None:
    """Raise InputError if a method does not support the family, a guidance scale of a prompt, or a concept."""
    guidances = [prompt.guidance for task in tasks for prompt in task.prompts]
    texts = [task.value for task in tasks if task.column is None]
    for spec in specs:
        if not spec.is_steering:
            check_method(spec.name, spec.settings, family, guidances)
        elif spec.name == "difference_of_means" and texts:
            raise InputError(
                f"{FIELD} has {spec.text!r}, which needs a concept that is a label of config.steer.prompts; --concept "
                f"is {texts[0]!r}"
            )


def check_limits(specs: Sequence[MethodSpec], site: str) -> None:
    """Raise InputError if a method limits steering in a way that has no effect at a hook point."""
    in_denoiser = hook_points.is_denoiser_point(site)
    for spec in specs:
        if isinstance(limits := spec.settings, SteerSettings):
            if in_denoiser and limits.positions != "all":
                raise InputError(f"{FIELD} has {spec.text!r}; positions must be all at {site}, in the denoiser")
            if not in_denoiser and (limits.timesteps or limits.ramp != NO_RAMP):
                raise InputError(
                    f"{FIELD} has {spec.text!r}; timesteps and ramp need a hook point of the denoiser, not {site}"
                )


class TaskMethods:
    """Opens the variants of one task. Learning from labeled prompts happens once, when a method first needs it."""

    def __init__(
        self,
        task: Task,
        config: Config,
        pipe: typing.Any,
        steerer: Steerer | None,
        labeled: list[LabeledPrompt],
        identity: dict[str, typing.Any],
    ):
        self._task, self._config, self._pipe, self._steerer = task, config, pipe, steerer
        self._labeled, self._identity = labeled, identity

    def variants(self, specs: Sequence[MethodSpec]) -> list[Variant]:
        """Return every method at each of its strengths. Methods that cannot add a concept are left out when adding."""
        sign = -1 if self._task.adding else 1
        return [
            Variant(spec, strength, self._key(spec, strength))
            for spec in specs
            if spec.is_steering or spec.name == "plain" or not self._task.adding
            for strength in ([sign * each for each in spec.strengths] or [0.0])
        ]

    @contextlib.contextmanager
    def open(self, variant: Variant) -> Generator[Sampler]:
        """Yield the sampler of a variant."""
        spec = variant.method
        if not spec.is_steering:
            with open_method(spec.name, self._pipe, self._task.phrases, spec.settings) as sampler:
                yield sampler
            return
        function, on_negative = self._function(spec)
        pooled: dict[Key, Pooled] | None = None
        if self._config.steer.pooled:
            pooled = {"concept": pooled_of(self._pipe, self._task.value)}
        with self._sae_steerer.attach_functions(
            self._pipe,
            {"concept": function},
            {"concept": variant.strength},
            negative_branch=on_negative,
            pooled=pooled,
            where=spec.settings.where if isinstance(spec.settings, SteerSettings) else None,
        ):
            yield functools.partial(sample, self._pipe)

    @property
    def _sae_steerer(self) -> Steerer:
        assert self._steerer is not None  # loaded if a method is in STEERING
        return self._steerer

    def _key(self, spec: MethodSpec, strength: float) -> str:
        content = {**self._identity, "method": spec.name, "settings": dataclasses.asdict(spec.settings)}
        if spec.name != "plain":  # its images do not depend on the concept
            content |= {"concept": [self._task.column, self._task.value], "strength": strength}
        if spec.is_steering:
            texts = json.dumps([sorted(self._reported_texts), self._labeled], sort_keys=True)
            content |= {"learning": hashlib.sha256(texts.encode()).hexdigest()}
        else:
            content.pop("sae", None)
        return key_of(content)

    def _function(self, spec: MethodSpec) -> tuple[ChangeFunction, bool]:
        """Return the change of the activations, and whether it is also applied to the unconditional branch, negated."""
        if spec.name == "difference_of_means":
            return self._means, True
        learned = self._learned if spec.settings.learned == LABELS else None
        if learned and spec.settings.rule in (AUTO, *FROM_LABELS):
            learned = self._transported
        rule = resolve_rule(spec.settings.rule, learned)
        sae = self._sae_steerer.sae_for(self._pipe)
        concept = self._sae_steerer.encoder.encode(self._pipe, self._task.value, learned, sampling=self._sampling)
        function = change_function(rule, sae, concept)
        if spec.name == "random_direction":
            function = random_direction(function)
        return function, rule in ON_BOTH_BRANCHES and spec.settings.negative_branch

    @functools.cached_property
    def _sampling(self) -> dict[str, typing.Any] | None:
        in_denoiser = hook_points.is_denoiser_point(self._sae_steerer.site)
        return call_settings(self._pipe, self._config.steer) if in_denoiser else None

    @functools.cached_property
    def _reported_texts(self) -> set[str]:
        return {prompt.prompt for prompt in self._task.reported.prompts}

    @functools.cached_property
    def _unreported(self) -> list[LabeledPrompt]:
        """Return the labeled prompts that report no figures."""
        return [row for row in self._labeled if row["prompt"] not in self._reported_texts]

    @functools.cached_property
    def _examples(self) -> tuple[list[str], list[str]]:
        """Return labeled prompts with and without the concept that report no figures."""
        assert self._task.column is not None  # see check_specs
        with_concept, without = split(self._unreported, self._task.column, self._task.value)
        if self._sampling is not None:
            with_concept, without = at_most(with_concept, IMAGES), at_most(without, IMAGES)
        return with_concept, without

    @functools.cached_property
    def _learned(self) -> LearnedConcept | None:
        """Return the concept learned from labeled prompts, else the one that `revelio learn` saved, else None."""
        if self._task.column is None:
            return saved_concepts(self._config.run or "").get(self._task.value)
        sae = self._sae_steerer.sae_for(self._pipe)
        learned, _ = find_latents(self._pipe, self._sae_steerer.site, sae, *self._examples, RATIO, MOST, self._sampling)
        return learned

    @functools.cached_property
    def _transported(self) -> LearnedConcept | None:
        """Return the learned concept with its changes for the rule ``transport``, which only text encoders have."""
        if self._learned is None or self._task.column is None or self._sampling is not None:
            return self._learned
        sae = self._sae_steerer.sae_for(self._pipe)
        transport = learn_transport(
            self._pipe, self._sae_steerer.site, sae, self._unreported, self._task.column, self._task.value
        )
        return dataclasses.replace(self._learned, transport=transport)

    @functools.cached_property
    def _means(self) -> ChangeFunction:
        concept = difference_of_means(self._pipe, self._sae_steerer.site, *self._examples, sampling=self._sampling)
        return concept.change_function()


def random_direction(function: ChangeFunction) -> ChangeFunction:
    """Return a control: a random direction at every position, as long as the change by ``function`` there."""
    generator = torch.Generator()

    def control(x_BTD: torch.Tensor, weight: Weight) -> torch.Tensor:
        length = function(x_BTD, weight).norm(dim=-1, keepdim=True)
        generator.manual_seed(0)  # the same direction in every call
        direction = torch.randn(x_BTD.shape[1:], generator=generator).to(x_BTD)
        return length * direction / direction.norm(dim=-1, keepdim=True)

    return control


def _parse_strengths(text: str, value: typing.Any) -> tuple[float, ...]:
    strengths = _numbers(value)
    if not strengths or not all(strengths):
        raise InputError(f"{FIELD} has {text!r}; {STRENGTHS} must be numbers other than 0, for example -1,-0.5")
    return strengths


def _numbers(value: typing.Any) -> tuple[float, ...]:
    """Return the numbers of a setting such as ``-1,-0.5``; none if one is malformed or not finite."""
    try:
        numbers = tuple(float(each) for each in (value if isinstance(value, list) else str(value).split(",")))
    except (TypeError, ValueError):
        return ()
    return numbers if all(abs(each) < float("inf") for each in numbers) else ()
