"""Sweep over strengths: draw a strip and a curve of removal and retention, and suggest a strength.

    revelio sweep --config mini_sd --concept "style=glossy 3d" \\
        --strength=-3,-2.5,-2,-1.5,-1,-0.5,0 --suggest 0.9

Writes sweep_<concept>.png, the strip, and sweep.json into runs/<name>/steering/. If the config has labeled prompts and
a judge that can measure the concept, it also writes sweep_<concept>_curve.png: shares of images, labeled by the judge,
with 95 % intervals over prompts. --suggest SHARE prints the smallest strength that removes the concept from that share
of images. It is chosen on every second prompt, and its effect is measured on the others.

A judge that predicts labels, as the miniatures' does, measures concepts that are values of these labels. A judge that
detects a concept, for example nudenet, measures any concept: on prompts whose label is the concept and on prompts with
another value of that label, or on all prompts if the concept is not a label.
"""

import math
import sys
from collections.abc import Sequence

import tqdm

from revelio_jax import files
from revelio_jax.benchmark import curve, strip
from revelio_jax.benchmark.bench import make_bench
from revelio_jax.benchmark.experiment import CONCEPT_FLAG, PROMPT_FLAG, SAE_FLAG, Experiment, load_experiment
from revelio_jax.benchmark.measurement import Outcome, Suggestion, figure_names, measure
from revelio_jax.cli import parse
from revelio_jax.errors import InputError, memory_advice, report_errors, require
from revelio_jax.pipelines.sampling import MEMORY_ADVICE
from revelio_jax.steering.learned_concepts import file_name
from revelio_jax.steering.strengths import parse_strengths

FLAGS = {
    "prompt": PROMPT_FLAG,
    "concept": CONCEPT_FLAG,
    "strength": ("-3,-2.5,-2,-1.5,-1,-0.5,0", "strengths, separated by commas"),
    "seed": (0, "seed of the strip, and first seed of the judged images"),
    "seeds": (1, "judged images per prompt, from consecutive seeds"),
    "measure": (40, "number of labeled prompts with the concept, and as many without it, to judge; 0: no judging"),
    "suggest": (None, "share of images to remove the concept from, above 0 and at most 1; None: no suggestion"),
    "sae": SAE_FLAG,
}


@memory_advice(MEMORY_ADVICE)
def main(argv: Sequence[str]) -> None:
    config, flags = parse(["revelio_jax.steering sweep", *argv], __doc__, **FLAGS)
    strengths = sorted(set(parse_strengths(flags["strength"])))
    target = _parse_target(flags["suggest"])
    judged = flags["measure"] if config.steer.judge else 0
    if target and judged < 2:
        raise InputError("--suggest needs a judge: set config.steer.judge, and --measure to at least 2 prompts")
    if flags["seeds"] < 1:
        raise InputError(f"--seeds is {flags['seeds']}; it must be at least 1")
    if judged:
        require("matplotlib", "plot", "the curve")
    experiment = load_experiment(
        config, flags["concept"], flags["prompt"], flags["sae"], judged > 0, needs_judge=target is not None
    )
    stem = f"sweep_{file_name(experiment.text)}"
    title = f"{experiment.text}: {experiment.rule} at {experiment.steerer.site}"
    seeds = list(range(flags["seed"], flags["seed"] + flags["seeds"]))

    images = experiment.sample(strengths, flags["seed"])
    outcomes = _measure_strengths(experiment, strengths, seeds, judged)

    grid = experiment.folder / f"{stem}.png"
    with files.replacing(grid) as part:
        strip.draw(images, experiment.prompts, strengths, f"{title}, seed {flags['seed']}").save(part, "png")
    results = {"prompts": experiment.prompts, "strengths": strengths, "seeds": seeds, "grid": str(grid)}
    print(f"images: {grid}")
    if outcomes:
        summaries = {strength: outcome.summary() for strength, outcome in outcomes.items()}
        suggestion = suggest(outcomes, target) if target else None
        plot = experiment.folder / f"{stem}_curve.png"
        with files.replacing(plot) as part:
            curve.draw(summaries, title, suggestion).savefig(part, format="png")
        results |= {
            "curve": str(plot),
            "judged": judged,
            "measured": {f"{strength:g}": summary for strength, summary in summaries.items()},
            "suggestion": suggestion,
        }
        print(f"curve: {plot}")
        if suggestion:
            print(describe(experiment.text, suggestion))
    experiment.record("sweep.json", results)


def suggest(outcomes: dict[float, Outcome], target: float) -> Suggestion:
    """Return the smallest strength whose removal is at least ``target``, a share of images.

    The strength is chosen on every second prompt. Its figures are reported on the others, so that the choice does not
    bias them.
    """
    removal = {strength: 1 - outcome.half(0).mean("concept") for strength, outcome in outcomes.items()}
    sufficient = [strength for strength in removal if removal[strength] >= target]
    most = max(removal, key=lambda strength: (removal[strength], -abs(strength)))
    strength = min(sufficient, key=abs) if sufficient else None
    return {
        "wanted": target,
        "strength": strength,
        "chosen_at": None if strength is None else removal[strength],
        "most": {"strength": most, "removal": removal[most]},
        "reported": None if strength is None else outcomes[strength].half(1).summary(),
    }


def describe(text: str, suggestion: Suggestion) -> str:
    """Return a suggestion as lines to print."""
    if suggestion["strength"] is None:
        most = suggestion["most"]
        return (
            f"no strength removes {text!r} from {suggestion['wanted']:.0%} of the images; the largest share is "
            f"{most['removal']:.0%}, at strength {most['strength']:g}"
        )
    lines = [f"suggested strength: {suggestion['strength']:g}; shares of images on the prompts not used to choose it:"]
    reported = suggestion["reported"] or {}
    for name, text in figure_names(reported).items():
        lines.append(f"  {text:34} " + "{mean:.3f} ({low:.2f}-{high:.2f})".format(**reported[name]))
    return "\n".join(lines)


def _measure_strengths(
    experiment: Experiment, strengths: list[float], seeds: list[int], n: int
) -> dict[float, Outcome]:
    """Return the outcome at each strength, or {} without a judge."""
    judge = experiment.judge
    if judge is None:
        return {}
    bench = make_bench(experiment.labeled, *experiment.concept, n, judge.columns)
    pipe, settings = experiment.pipe, experiment.config.steer
    with tqdm.tqdm(total=len(strengths) * len(seeds) * bench.prompt_count, unit="image", desc="judging") as progress:
        return {
            strength: measure(pipe, judge, bench, seeds, settings, experiment.attach(strength), progress)
            for strength in strengths
        }


def _parse_target(text: str | None) -> float | None:
    if not text:
        return None
    try:
        target = float(text)
    except ValueError:
        target = math.nan
    if not 0 < target <= 1:
        raise InputError(f"--suggest is {text!r}; it must be a share of images above 0 and at most 1, for example 0.9")
    return target


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
