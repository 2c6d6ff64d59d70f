"""Steer a concept: draw a strip of images at several strengths, and measure removal and retention with a judge.

    revelio steer --config mini_sd --concept "glossy 3d" --strength -1,-0.5,0

Writes runs/<name>/steering/<concept>.png and results.json. Negative strengths remove the concept, positive strengths
add it, and 0 is the plain pipeline. The judge measures images only if the config has labeled prompts and a judge, and
the concept is one of the labels.

    revelio sweep --config mini_sd --help

draws a curve over many strengths and suggests a strength.
"""

import sys
from collections.abc import Sequence

from revelio_jax import files
from revelio_jax.benchmark import strip
from revelio_jax.benchmark.bench import make_bench
from revelio_jax.benchmark.experiment import CONCEPT_FLAG, PROMPT_FLAG, SAE_FLAG, load_experiment
from revelio_jax.benchmark.measurement import FIGURES, Interval, measure
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
    if experiment.judge and experiment.label:
        bench = make_bench(experiment.labeled, *experiment.label, flags["measure"])
        summaries = {}
        for strength in strengths:
            steering = experiment.attach(strength)
            outcome = measure(experiment.pipe, experiment.judge, bench, [seed], config.steer, steering)
            summaries[f"{strength:g}"] = outcome.summary()
        results["measured"] = summaries
        _print_table(summaries, len(bench.with_concept))
    experiment.record("results.json", results)
    print(f"images: {file}")


def _print_table(summaries: dict[str, dict[str, Interval]], prompts: int) -> None:
    print(f"shares of images, labeled by the judge, on {prompts} prompts with the concept and {prompts} without it:")
    print("  strength   concept left   other label kept   others: same label   others: other label")
    for strength, summary in summaries.items():
        cells = [f"{summary[name]['mean']:.2f}" for name in FIGURES]
        print(f"  {strength:>8}   {cells[0]:>12}   {cells[1]:>16}   {cells[2]:>18}   {cells[3]:>19}")


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
