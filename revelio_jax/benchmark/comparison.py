"""Compare steering rules on one concept, with a difference of means and a random direction as baselines."""

import typing

import torch
import tqdm

from revelio_jax.benchmark.bench import Bench
from revelio_jax.benchmark.measurement import Judge, Outcome, measure, worst
from revelio_jax.benchmark.progress import Progress
from revelio_jax.config import Config, SteerConfig
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.sampling import call_settings
from revelio_jax.steering.labels import LabeledPrompt
from revelio_jax.steering.latents import IMAGES, MOST, RATIO, at_most, find_latents, split
from revelio_jax.steering.pooled import Pooled, pooled_of
from revelio_jax.steering.rules import ON_BOTH_BRANCHES, RULES, ChangeFunction, Weight, change_function
from revelio_jax.steering.steerer import Steerer
from revelio_jax.steering.strengths import Key
from revelio_jax.steering.vectors import difference_of_means

LEARNING_RULES = ("gated", "swap")  # rules that use latents found from labeled prompts


class Comparison(typing.TypedDict):
    """The comparison of all rules on one concept.

    A row has a rule, its strength, the smallest of its figures relative to the unsteered images (``worst``) and the
    interval of each figure.
    """

    concept: str
    adding: bool
    prompts: int  # measured prompts
    latents: list[dict[str, float]]  # see find_latents
    rows: list[dict[str, typing.Any]]


class Method(typing.NamedTuple):
    """A rule or baseline, applied to one concept. ``on_negative``: steer the unconditional branch oppositely too."""

    function: ChangeFunction
    on_negative: bool


def compare(
    config: Config,
    steerer: Steerer,
    pipe: typing.Any,
    judge: Judge,
    bench: Bench,
    labeled: list[LabeledPrompt],
    strengths: list[float],
    seeds: list[int],
    saved: Progress,
) -> Comparison:
    """Compare all rules on one concept; return its rows, one per rule and baseline.

    The strength of a rule is chosen on one half of the prompts with the first seed. Its outcome is measured on the
    other half with all seeds. Every outcome is added to ``saved``; those that it already has are not measured again.
    """
    methods, latents = make_methods(config.steer, steerer, pipe, bench, labeled)
    pooled: dict[Key, Pooled] | None = {"concept": pooled_of(pipe, bench.value)} if config.steer.pooled else None
    halves = [bench.half(0), bench.half(1)]
    total = (len(methods) * (len(strengths) + len(seeds)) + 1 + 2 * len(seeds)) * halves[0].prompt_count
    with tqdm.tqdm(total=total, desc=bench.value, unit="image") as progress:

        def run(half: int, rule: str = "none", method: Method | None = None, strength: float = 0.0) -> Outcome:
            half_seeds = seeds if half else seeds[:1]

            def sample() -> Outcome:
                steering = method and steerer.attach_functions(
                    pipe,
                    {"concept": method.function},
                    {"concept": strength},
                    negative_branch=method.on_negative,
                    pooled=pooled,
                )
                return measure(pipe, judge, halves[half], half_seeds, config.steer, steering, progress)

            outcome, is_reused = saved.outcome((bench.column, bench.value, bench.adding, rule, strength, half), sample)
            if is_reused:
                progress.update(halves[half].prompt_count * len(half_seeds))
            return outcome

        plain = [run(half) for half in (0, 1)]

        def row(rule: str, strength: float, outcome: Outcome) -> dict[str, typing.Any]:
            smallest = worst(outcome, plain[1], bench.adding)
            return {"rule": rule, "strength": strength, "worst": smallest, **outcome.summary()}

        rows = [row("none", 0.0, plain[1])]
        best: tuple[float, Method, float] | None = None
        for name, method in methods.items():
            scores = {s: worst(run(0, name, method, s), plain[0], bench.adding) for s in strengths}
            strength = max(scores, key=lambda s: (round(scores[s], 3), -abs(s)))
            outcome = run(1, name, method, strength)
            rows.append(row(name, strength, outcome) | {"chosen_from": scores})
            if name in RULES and (best is None or rows[-1]["worst"] > best[0]):
                best = (rows[-1]["worst"], method, strength)
        assert best is not None  # RULES is not empty
        _, method, strength = best
        control = Method(random_direction(method.function), method.on_negative)
        outcome = run(1, "random direction", control, strength)
        rows.append(row("random direction", strength, outcome))
    return {
        "concept": f"{bench.column}={bench.value}",
        "adding": bench.adding,
        "prompts": halves[1].prompt_count,
        "latents": latents,
        "rows": rows,
    }


def make_methods(
    settings: SteerConfig, steerer: Steerer, pipe: typing.Any, bench: Bench, labeled: list[LabeledPrompt]
) -> tuple[dict[str, Method], list[dict[str, float]]]:
    """Return every method of steering a concept, by name, and the latents of the concept.

    The methods learn from the labeled prompts that the bench does not report on.
    """
    assert bench.column is not None  # the concepts of this command are labels
    test_prompts = {row["prompt"] for row in bench.with_concept[1::2] + bench.without[1::2]}
    with_concept, without = split(
        [row for row in labeled if row["prompt"] not in test_prompts], bench.column, bench.value
    )
    sae, sampling = steerer.sae_for(pipe), None
    if hook_points.is_denoiser_point(steerer.site):
        sampling = call_settings(pipe, settings)
        with_concept, without = at_most(with_concept, IMAGES), at_most(without, IMAGES)
    learned, latents = find_latents(pipe, steerer.site, sae, with_concept, without, RATIO, MOST, sampling)
    concept = steerer.encoder.encode(pipe, bench.value, learned, sampling=sampling)
    text_concept = steerer.encoder.encode(pipe, bench.value, sampling=sampling)
    means = difference_of_means(pipe, steerer.site, with_concept, without, sampling=sampling)
    methods = {name: Method(change_function(name, sae, concept), name in ON_BOTH_BRANCHES) for name in RULES}
    for name in LEARNING_RULES:
        methods[f"{name}, from text only"] = Method(change_function(name, sae, text_concept), False)
    methods["difference of means"] = Method(means.change_function(), True)
    return methods, latents


def random_direction(function: ChangeFunction) -> ChangeFunction:
    """Return a control: a random direction at every position, as long as the change by ``function`` there."""
    generator = torch.Generator()

    def control(x_BTD: torch.Tensor, weight: Weight) -> torch.Tensor:
        length = function(x_BTD, weight).norm(dim=-1, keepdim=True)
        generator.manual_seed(0)  # the same direction in every call
        direction = torch.randn(x_BTD.shape[1:], generator=generator).to(x_BTD)
        return length * direction / direction.norm(dim=-1, keepdim=True)

    return control
