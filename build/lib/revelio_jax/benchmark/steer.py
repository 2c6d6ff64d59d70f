"""Sample with a concept steered: a strip over strengths, and what a judge says of it.

    python -m revelio_jax.steering --config configs/mini_sd.py --concept "glossy 3d" --strength -1,-0.5,0

Writes runs/<name>/steering/<concept>.png and results.json. Strengths below 0 remove, above 0 add; 0
is the plain pipeline. Where the config names labelled prompts and a judge, and the concept is one of
their labels, removal and retention are measured too.

    python -m revelio_jax.steering sweep --config configs/mini_sd.py --help

draws a curve over many strengths and suggests one.
"""

import sys
from collections.abc import Sequence

from revelio_jax.benchmark import strip
from revelio_jax.benchmark.experiment import prepare
from revelio_jax.benchmark.measurement import FIGURES, make_bench, measure
from revelio_jax.cli import parse
from revelio_jax.errors import reported
from revelio_jax.steering.learned_concepts import file_name
from revelio_jax.steering.strengths import parse_strengths

FLAGS = {
    "prompt": ((), "what to draw; may be given several times. Without it, five prompts with the concept"),
    "concept": ("", 'what to remove or add: a text such as "glossy 3d", or a label, as "style=glossy 3d"'),
    "strength": ("-1,-0.5,0", "strengths of the strip, separated by commas"),
    "seed": (0, "seed of the pictures"),
    "measure": (24, "labelled prompts to measure on, with the concept and as many without; 0: none"),
    "sae": ("", "SAE folder or hub id; empty is runs/<name>/export"),
}


def main(argv: Sequence[str]) -> None:
    config, flags = parse(["revelio_jax.steering", *argv], __doc__, **FLAGS)
    strengths = parse_strengths(flags["strength"])
    run, prompts = prepare(config, flags["concept"], flags["prompt"], flags["sae"], flags["measure"] > 0)
    pictures = run.pictures(prompts, strengths, flags["seed"])
    file = run.folder / f"{file_name(run.text)}.png"
    title = f"{run.text}: {run.rule} at {run.steerer.site}, seed {flags['seed']}"
    strip.draw(pictures, prompts, strengths, title).save(file)

    results = {"prompts": prompts, "strengths": strengths, "seed": flags["seed"], "strip": str(file)}
    if run.judge:
        bench = make_bench(run.labelled, *run.label, flags["measure"])
        results["measured"] = {}
        for strength in strengths:
            steering = run.steering(strength)
            outcome = measure(run.pipe, run.judge, bench, [flags["seed"]], config.steer, steering)
            results["measured"][f"{strength:g}"] = outcome.summary()
        _print_measured(results["measured"], len(bench.with_concept))
    run.record("results.json", results)
    print(f"pictures: {file}")


def _print_measured(measured: dict[str, dict], prompts: int) -> None:
    print(f"judged on {prompts} prompts with the concept and {prompts} without (share of pictures):")
    print("  strength   concept left   other label kept   others: its label   others: other label")
    for strength, summary in measured.items():
        cells = [f"{summary[name]['mean']:.2f}" for name in FIGURES]
        print(f"  {strength:>8}   {cells[0]:>12}   {cells[1]:>16}   {cells[2]:>17}   {cells[3]:>19}")


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
