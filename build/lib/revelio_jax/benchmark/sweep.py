"""Which strength: a grid of prompts x strengths, and a curve of what is removed and what is kept.

    python -m revelio_jax.steering sweep --config configs/mini_sd.py --concept "style=glossy 3d" \\
        --strength=-3,-2.5,-2,-1.5,-1,-0.5,0 --suggest 0.9

Writes sweep_<concept>.png, the grid, and sweep.json into runs/<name>/steering/. Where the config names
labelled prompts and a judge, and the concept is one of their labels, also sweep_<concept>_curve.png:
shares of pictures by the judge, with 95 % intervals over prompts. --suggest names the smallest strength
that takes the concept out of that share of pictures, chosen on every second prompt and reported on the
others.
"""

import math
import os
import sys
import typing
from collections.abc import Sequence

import tqdm

from revelio_jax.benchmark import curve, strip
from revelio_jax.benchmark.experiment import Experiment, prepare
from revelio_jax.benchmark.measurement import FIGURES, Outcome, make_bench, measure
from revelio_jax.cli import parse
from revelio_jax.errors import InputError, reported, require
from revelio_jax.steering.learned_concepts import file_name
from revelio_jax.steering.strengths import parse_strengths

FLAGS = {
    "prompt": ((), "what to draw; may be given several times. Without it, five prompts with the concept"),
    "concept": ("", 'what to remove or add: a text such as "glossy 3d", or a label, as "style=glossy 3d"'),
    "strength": ("-3,-2.5,-2,-1.5,-1,-0.5,0", "strengths, separated by commas"),
    "seed": (0, "seed of the grid's pictures, and the first of those that are judged"),
    "seeds": (1, "judged pictures a prompt"),
    "measure": (40, "labelled prompts to judge, with the concept and as many without; 0: none"),
    "suggest": (
        "",
        "wanted removal, the share of pictures without the concept, as 0.9; empty: no suggestion",
    ),
    "sae": ("", "SAE folder or hub id; empty is runs/<name>/export"),
}


def main(argv: Sequence[str]) -> None:
    config, flags = parse(["revelio_jax.steering sweep", *argv], __doc__, **FLAGS)
    strengths = sorted(set(parse_strengths(flags["strength"])))
    wanted = _wanted(flags["suggest"])
    judged = flags["measure"] if config.steer.judge else 0
    if wanted and judged < 2:
        raise InputError("--suggest needs a judge: set config.steer.judge, and --measure to 2 prompts or more")
    if flags["seeds"] < 1:
        raise InputError(f"--seeds is {flags['seeds']}; it must be 1 or more")
    if judged:
        require("matplotlib", "plot", "the curve")
    run, prompts = prepare(
        config, flags["concept"], flags["prompt"], flags["sae"], judged > 0, must_judge=wanted is not None
    )
    stem = f"sweep_{file_name(run.text)}"
    title = f"{run.text}: {run.rule} at {run.steerer.site}"
    seeds = list(range(flags["seed"], flags["seed"] + flags["seeds"]))

    pictures = run.pictures(prompts, strengths, flags["seed"])
    outcomes = _measured(run, strengths, seeds, judged) if run.judge else {}

    grid = run.folder / f"{stem}.png"
    strip.draw(pictures, prompts, strengths, f"{title}, seed {flags['seed']}").save(grid)
    results = {"prompts": prompts, "strengths": strengths, "seeds": seeds, "grid": str(grid)}
    print(f"pictures: {grid}")
    if outcomes:
        summaries = {strength: outcome.summary() for strength, outcome in outcomes.items()}
        suggestion = suggest(outcomes, wanted) if wanted else None
        drawn = run.folder / f"{stem}_curve.png"
        partial = drawn.with_suffix(".partial")
        curve.draw(summaries, title, suggestion).savefig(partial, format="png")
        os.replace(partial, drawn)
        results |= {
            "curve": str(drawn),
            "judged": judged,
            "measured": {f"{strength:g}": summary for strength, summary in summaries.items()},
            "suggestion": suggestion,
        }
        print(f"curve: {drawn}")
        if suggestion:
            print(said(run.text, suggestion))
    run.record("sweep.json", results)


def suggest(outcomes: dict[float, Outcome], wanted: float) -> dict[str, typing.Any]:
    """The smallest strength whose removal is ``wanted``, a share of pictures, or that there is none.

    It is chosen on every second prompt: ``strength`` (None where none does it) and ``chosen_at``, the
    removal there. ``reported`` are the figures of the other prompts, who had no say in it. ``most`` is
    the largest removal, with its strength.
    """
    removal = {strength: 1 - float(outcome.half(0).concept.mean()) for strength, outcome in outcomes.items()}
    enough = [strength for strength in removal if removal[strength] >= wanted]
    most = max(removal, key=lambda strength: (removal[strength], -abs(strength)))
    strength = min(enough, key=abs) if enough else None
    return {
        "wanted": wanted,
        "strength": strength,
        "chosen_at": None if strength is None else removal[strength],
        "most": {"strength": most, "removal": removal[most]},
        "reported": None if strength is None else outcomes[strength].half(1).summary(),
    }


def said(text: str, suggestion: dict[str, typing.Any]) -> str:
    """A suggestion as lines for a person."""
    wanted, most = suggestion["wanted"], suggestion["most"]
    if suggestion["strength"] is None:
        return (
            f"no strength of these takes {text!r} out of {wanted:.0%} of the pictures; the most is "
            f"{most['removal']:.0%} at {most['strength']:g}"
        )
    lines = [f"suggested strength: {suggestion['strength']:g}; on prompts that it was not chosen on:"]
    for name, figure in suggestion["reported"].items():
        lines.append(f"  {FIGURES[name]:34} " + "{mean:.3f} ({low:.2f}-{high:.2f})".format(**figure))
    return "\n".join(lines)


def _measured(run: Experiment, strengths: list[float], seeds: list[int], n: int) -> dict[float, Outcome]:
    bench = make_bench(run.labelled, *run.label, n)
    total = len(strengths) * len(seeds) * bench.prompts
    with tqdm.tqdm(total=total, unit="picture", desc="judging") as progress:
        return {
            strength: measure(run.pipe, run.judge, bench, seeds, run.config.steer, run.steering(strength), progress)
            for strength in strengths
        }


def _wanted(text: str) -> float | None:
    if not text:
        return None
    try:
        wanted = float(text)
    except ValueError:
        wanted = math.nan
    if not 0 < wanted <= 1:
        raise InputError(f"--suggest is {text!r}; it must be a share of pictures above 0, at most 1, as 0.9")
    return wanted


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
