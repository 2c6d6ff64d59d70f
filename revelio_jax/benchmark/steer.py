"""Steer a concept: draw a strip of images at several strengths, and measure removal and retention with a judge.

    revelio steer --config mini_sd --concept "glossy 3d" --strength -1,-0.5,0

Writes runs/<name>/steering/<concept>.png and results.json. Negative strengths remove the concept, positive strengths
add it, and 0 is the plain pipeline. Images are measured if the config has labeled prompts and a judge that predicts the
label of the concept, or that detects a concept.

    revelio sweep --config mini_sd --help

draws a curve over many strengths and suggests a strength.
"""

import sys
from collections.abc import Sequence

from revelio_jax import files
from revelio_jax.benchmark import strip
from revelio_jax.benchmark.bench import Bench, make_bench
from revelio_jax.benchmark.experiment import CONCEPT_FLAG, PROMPT_FLAG, SAE_FLAG, load_experiment
from revelio_jax.benchmark.measurement import Interval, measure
from revelio_jax.cli import parse
from revelio_jax.errors import memory_advice, report_errors
from revelio_jax.pipelines.sampling import MEMORY_ADVICE
from revelio_jax.steering.learned_concepts import file_name
from revelio_jax.steering.strengths import parse_strengths

FLAGS = {
    "prompt": PROMPT_FLAG,
    "concept": CONCEPT_FLAG,
    "strength": ("-1,-0.5,0", "strengths of the strip, separated by commas"),
    "seed": (0, "seed of the images"),
    "measure": (24, "number of labeled prompts with the concept, and as many without it, to judge; 0: no judging"),
    "sae": SAE_FLAG,
}
HEADINGS = {
    "concept": "concept left",
    "kept": "other label kept",
    "others_label": "others: same label",
    "others_kept": "others: other label",
    "others_absent": "others: no concept",
}


@memory_advice(MEMORY_ADVICE)
def main(argv: Sequence[str]) -> None:
    config, flags = parse(["revelio_jax.steering", *argv], __doc__, **FLAGS)
    strengths, seed = parse_strengths(flags["strength"]), flags["seed"]
    experiment = load_experiment(config, flags["concept"], flags["prompt"], flags["sae"], flags["measure"] > 0)
    images = experiment.sample(strengths, seed)
    file = experiment.folder / f"{file_name(experiment.text)}.png"
    title = f"{experiment.text}: {experiment.rule} at {experiment.steerer.site}, seed {seed}"
    with files.replacing(file) as part:
        strip.draw(images, experiment.prompts, strengths, title).save(part, "png")

    results = {"prompts": experiment.prompts, "strengths": strengths, "seed": seed, "strip": str(file)}
    if experiment.judge:
        bench = make_bench(experiment.labeled, *experiment.concept, flags["measure"], experiment.judge.columns)
        summaries = {}
        for strength in strengths:
            steering = experiment.attach(strength)
            outcome = measure(experiment.pipe, experiment.judge, bench, [seed], config.steer, steering)
            summaries[f"{strength:g}"] = outcome.summary()
        results["measured"] = summaries
        _print_table(summaries, bench)
    experiment.record("results.json", results)
    print(f"images: {file}")


def _print_table(summaries: dict[str, dict[str, Interval]], bench: Bench) -> None:
    counts = f"{len(bench.with_concept)} prompts with the concept and {len(bench.without)} without it"
    print(f"shares of images, labeled by the judge, on {counts}:")
    figures = [name for name in HEADINGS if name in next(iter(summaries.values()))]
    print("   ".join(["  strength", *(HEADINGS[name] for name in figures)]))
    for strength, summary in summaries.items():
        cells = [f"{summary[name]['mean']:>{len(HEADINGS[name])}.2f}" for name in figures]
        print("   ".join([f"  {strength:>8}", *cells]))


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
