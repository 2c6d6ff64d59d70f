"""How well each rule removes concepts, against a difference of means and a random direction.

    python -m revelio_jax.benchmark.table --config configs/mini_sd.py \\
        --concept "style=glossy 3d" --concept category=heart --concept category=animal

For every concept and rule, the strength is chosen on one half of the prompts (by the worst of
removal and retention) and reported on the other half. Rules that learn from labelled prompts are also
measured as they are without any, from the concept's text alone. A concept whose label is left out by
some prompts is also added to those. Writes runs/<name>/steering/table.json and table.md.
"""

import datetime
import json
import pathlib
import sys
import typing
from collections.abc import Sequence

import torch
import tqdm

from revelio_jax.benchmark.judges import load_judge
from revelio_jax.benchmark.measurement import (
    FIGURES,
    Bench,
    Outcome,
    make_adding_bench,
    make_bench,
    measure,
    worst,
)
from revelio_jax.cli import parse
from revelio_jax.config import Config
from revelio_jax.errors import InputError, reported
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.sampling import sampling_of
from revelio_jax.pipelines.whole import load_pipeline
from revelio_jax.steering.labels import LabeledPrompt, parse_concept, read_labeled
from revelio_jax.steering.latents import few, find_latents, split
from revelio_jax.steering.pooled import pooled_of
from revelio_jax.steering.rules import ON_BOTH_BRANCHES, RULES, Change, change_of
from revelio_jax.steering.steerer import Steerer
from revelio_jax.steering.strengths import parse_strengths
from revelio_jax.steering.vectors import change as vector_change
from revelio_jax.steering.vectors import difference_of_means

FLAGS = {
    "concept": ((), "label column and value, such as style=flat; may be given several times"),
    "strength": ("-0.25,-0.5,-0.75,-1,-1.5,-2", "strengths to choose from; their opposites for adding"),
    "prompts": (80, "prompts with the concept, and as many without; half choose, half report"),
    "seeds": (3, "pictures a prompt"),
}
LEARN = ("gated", "swap")  # the rules that labelled prompts teach
RATIO, MOST, PICTURES = 4.0, 24, 64  # how the latents of gated and swap are found; see the command latents


def main(argv: Sequence[str]) -> None:
    config, flags = parse(["revelio_jax.benchmark.table", *argv], __doc__, **FLAGS)
    labelled = read_labeled(config.steer.prompts)
    if not flags["concept"]:
        raise InputError("--concept is missing; give a label column and value, such as style=flat")
    concepts = [parse_concept(concept, labelled) for concept in flags["concept"]]
    strengths = parse_strengths(flags["strength"])
    judge = load_judge(config.steer.judge)
    steerer = Steerer.from_pretrained(pathlib.Path(config.run, "export"))
    pipe = load_pipeline(config.model)

    seeds = list(range(flags["seeds"]))
    results = []
    for column, value in concepts:
        bench = make_bench(labelled, column, value, flags["prompts"])
        results.append(compare(config, steerer, pipe, judge, bench, labelled, strengths, seeds))
        bench = make_adding_bench(labelled, column, value, flags["prompts"])
        if bench.with_concept:
            up = [-strength for strength in strengths]
            results.append(compare(config, steerer, pipe, judge, bench, labelled, up, seeds))
    folder = pathlib.Path(config.run, "steering")
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": config.model.id,
        "site": steerer.site,
        "seeds": seeds,
        "steps": config.steer.steps,
        "guidance": config.steer.guidance,
        "pooled": config.steer.pooled,
        "torch": torch.__version__,
        "concepts": results,
    }
    (folder / "table.json").write_text(json.dumps(record, indent=1) + "\n")
    text = "\n".join(markdown(result) for result in results)
    (folder / "table.md").write_text(text)
    print(text)
    print(f"in {folder / 'table.md'}")


def compare(
    config: Config,
    steerer: Steerer,
    pipe: typing.Any,
    judge: typing.Any,
    bench: Bench,
    labelled: list[LabeledPrompt],
    strengths: list[float],
    seeds: list[int],
) -> dict[str, typing.Any]:
    """The rows of one concept: for each rule the chosen strength and its outcome."""
    reported_on = {row["prompt"] for row in bench.with_concept[1::2] + bench.without[1::2]}
    with_concept, without = split(
        [row for row in labelled if row["prompt"] not in reported_on], bench.column, bench.value
    )
    sae = steerer.placed(pipe)
    sampling = None
    if hook_points.is_denoiser_site(steerer.site):
        sampling = sampling_of(pipe, config.steer)
        with_concept, without = few(with_concept, PICTURES), few(without, PICTURES)
    learned, latents = find_latents(pipe, steerer.site, sae, with_concept, without, RATIO, MOST, sampling)
    concept = steerer.concept(pipe, bench.value, learned, sampling=sampling)
    # (change at strength 1, also on the negative branch?)
    rules = {name: (change_of(name, sae, concept), name in ON_BOTH_BRANCHES) for name in RULES}
    text_alone = steerer.concept(pipe, bench.value, sampling=sampling)
    for name in LEARN:
        rules[f"{name}, from its text alone"] = change_of(name, sae, text_alone), False
    means = difference_of_means(pipe, steerer.site, with_concept, without, sampling=sampling)
    rules["difference of means"] = (vector_change(means), True)
    pooled = {"concept": pooled_of(pipe, bench.value)} if config.steer.pooled else None
    halves = [bench.half(0), bench.half(1)]
    total = (len(rules) * (len(strengths) + len(seeds)) + 1 + 2 * len(seeds)) * halves[0].prompts
    with tqdm.tqdm(total=total, desc=bench.value, unit="picture") as progress:

        def run(half: int, change: Change | None, strength: float, negative: bool) -> Outcome:
            """Choosing takes one seed, reporting all."""
            steering = change and steerer.attach_changes(
                pipe,
                {"concept": change},
                {"concept": strength},
                negative_branch=negative,
                pooled=pooled,
            )
            chosen_seeds = seeds if half else seeds[:1]
            return measure(pipe, judge, halves[half], chosen_seeds, config.steer, steering, progress)

        plain = [run(half, None, 0.0, False) for half in (0, 1)]

        def row(rule: str, strength: float, outcome: Outcome) -> dict[str, typing.Any]:
            score = worst(outcome, plain[1])
            return {"rule": rule, "strength": strength, "worst": score, **outcome.summary()}

        rows = [row("none", 0.0, plain[1])]
        best: tuple[float, Change, float, bool] | None = None
        for name, (change, negative) in rules.items():
            scores = {s: worst(run(0, change, s, negative), plain[0]) for s in strengths}
            strength = max(scores, key=lambda s: (round(scores[s], 3), -abs(s)))
            outcome = run(1, change, strength, negative)
            rows.append(row(name, strength, outcome) | {"chosen_from": scores})
            if name in RULES and (best is None or rows[-1]["worst"] > best[0]):
                best = (rows[-1]["worst"], change, strength, negative)
        _, change, strength, negative = best
        control = random_direction(change, torch.Generator())
        outcome = run(1, control, strength, negative)
        rows.append(row("random direction", strength, outcome))
    return {
        "concept": f"{bench.column}={bench.value}",
        "adding": bench.adding,
        "prompts": halves[1].prompts,
        "latents": latents,
        "rows": rows,
    }


def random_direction(change: Change, generator: torch.Generator) -> Change:
    """The control: a random direction at every position, as long as the change of ``change``."""

    def control(x_BTD: torch.Tensor, strength: float) -> torch.Tensor:
        length = change(x_BTD, strength).norm(dim=-1, keepdim=True)
        generator.manual_seed(0)  # the same direction in every call
        direction = torch.randn(x_BTD.shape[1:], generator=generator).to(x_BTD)
        return length * direction / direction.norm(dim=-1, keepdim=True)

    return control


def markdown(result: dict[str, typing.Any]) -> str:
    figures = [name for name in FIGURES if name in result["rows"][0]]
    did = "added to prompts that do not say it" if result["adding"] else "removed"
    lines = [
        f"**{result['concept']}, {did}** ({result['prompts']} prompts)",
        "",
        f"| rule | strength | {' | '.join(FIGURES[name] for name in figures)} | worst |",
        "|---" * (3 + len(figures)) + "|",
    ]
    for row in result["rows"]:
        cells = ["{mean:.3f} ({low:.2f}-{high:.2f})".format(**row[name]) for name in figures]
        lines.append(f"| {row['rule']} | {row['strength']:g} | {' | '.join(cells)} | {row['worst']:.3f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
