"""Sample with a concept steered: a strip over strengths, and what a judge says of it.

    python -m revelio_jax.steering --config configs/mini_sd.py --concept "glossy 3d" --strength -1,-0.5,0

Writes runs/<name>/steering/<concept>.png and results.json. Strengths below 0 remove, above 0 add; 0
is the plain pipeline. Where the config names labelled prompts and a judge, and the concept is one of
their labels, removal and retention are measured too.
"""

import datetime
import json
import pathlib
import random
import typing

import diffusers
import torch
import tqdm
import transformers

from revelio_jax.command import main_argv, parse
from revelio_jax.config import Config
from revelio_jax.errors import InputError, reported
from revelio_jax.steering import strip
from revelio_jax.steering.judges import load_judge
from revelio_jax.steering.labels import Labelled, find_concept, read_labelled, spread
from revelio_jax.steering.learned import file_name, saved_concepts
from revelio_jax.steering.measure import FIGURES, make_bench, measure
from revelio_jax.steering.pipeline import load_pipeline
from revelio_jax.steering.rules import ON_BOTH_BRANCHES
from revelio_jax.steering.sampling import sample
from revelio_jax.steering.steerer import Attachment, Steerer
from revelio_jax.steering.strengths import parse_strengths

FLAGS = {
    "prompt": ((), "what to draw; may be given several times. Without it, five prompts with the concept"),
    "concept": ("", 'what to remove or add: a text such as "glossy 3d"'),
    "strength": ("-1,-0.5,0", "strengths of the strip, separated by commas"),
    "seed": (0, "seed of the pictures"),
    "measure": (24, "labelled prompts to measure on, with the concept and as many without; 0: none"),
    "sae": ("", "SAE folder; empty is runs/<name>/export"),
}


def main() -> None:
    config, flags = parse(main_argv("revelio_jax.steering"), __doc__, **FLAGS)
    strengths = parse_strengths(flags["strength"])
    text = flags["concept"]
    if not text:
        raise InputError('--concept is missing; it is a text, as --concept "glossy 3d"')
    labelled = read_labelled(config.steer.prompts) if config.steer.prompts else []
    label = find_concept(text, labelled)
    prompts = list(flags["prompt"]) or _prompts_with(label, labelled)
    judge = load_judge(config.steer.judge) if label and config.steer.judge and flags["measure"] else None
    steerer = Steerer.from_pretrained(flags["sae"] or pathlib.Path(config.train.run, "export"))
    trained_on = steerer.sae.metadata.get("model_id")
    if trained_on != config.model.id:
        raise InputError(f"config.model.id is {config.model.id!r}; the SAE was trained on {trained_on!r}")
    pipe = load_pipeline(config.model)

    learned = saved_concepts(config.train.run)

    def steering(strength: float) -> Attachment:
        return steerer.attach(
            pipe,
            {text: strength},
            rule=config.steer.rule,
            negative_branch=config.steer.negative_branch and config.steer.rule in ON_BOTH_BRANCHES,
            pooled=config.steer.pooled or None,
            learned=learned,
        )

    pictures = _pictures(config, pipe, prompts, flags["seed"], strengths, steering)
    folder = pathlib.Path(config.train.run, "steering")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{file_name(text)}.png"
    title = f"{text}: {config.steer.rule} at {steerer.site}, seed {flags['seed']}"
    strip.draw(pictures, prompts, strengths, title).save(file)

    results = {
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "concept": text,
        "prompts": prompts,
        "strengths": strengths,
        "seed": flags["seed"],
        "strip": str(file),
        "model": config.model.id,
        "site": steerer.site,
        "sae": steerer.sae.metadata,
        "settings": {name: getattr(config.steer, name) for name in config.steer.__dataclass_fields__},
        "versions": {m.__name__: m.__version__ for m in (torch, diffusers, transformers)},
    }
    if judge:
        bench = make_bench(labelled, *label, flags["measure"])
        results["measured"] = {}
        for strength in strengths:
            outcome = measure(pipe, judge, bench, [flags["seed"]], config.steer, steering(strength))
            results["measured"][f"{strength:g}"] = outcome.summary()
        _print_measured(results["measured"], len(bench.with_concept))
    partial = folder / "results.json.partial"
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(folder / "results.json")
    print(f"pictures: {file}")


def _prompts_with(label: tuple[str, str] | None, labelled: list[Labelled], n: int = 5) -> list[str]:
    if label is None:
        raise InputError("--prompt is missing; it may be left out for a concept that labels prompts")
    column, value = label
    rows = [row for row in labelled if row[column] == value and all(row.values())]
    other = next((key for key in rows[0] if key not in ("prompt", column)), column)
    return [row["prompt"] for row in spread(rows, other, n, random.Random(1))]


def _pictures(
    config: Config,
    pipe: typing.Any,
    prompts: list[str],
    seed: int,
    strengths: list[float],
    steering: typing.Callable[[float], Attachment],
) -> list[list]:
    """Pictures [prompts][strengths]; every prompt keeps its seed over the strengths."""
    columns = []
    with tqdm.tqdm(total=len(prompts) * len(strengths), unit="picture", desc="steering") as progress:
        for strength in strengths:
            with steering(strength):
                columns.append(
                    sample(
                        pipe,
                        prompts,
                        [seed] * len(prompts),
                        steps=config.steer.steps,
                        guidance=config.steer.guidance,
                        height=config.steer.height,
                        width=config.steer.width,
                        batch_size=config.steer.batch_size,
                        progress=progress,
                    )
                )
    return [list(row) for row in zip(*columns, strict=True)]


def _print_measured(measured: dict[str, dict], prompts: int) -> None:
    print(f"judged on {prompts} prompts with the concept and {prompts} without (share of pictures):")
    print("  strength   concept left   other label kept   others: its label   others: other label")
    for strength, summary in measured.items():
        cells = [f"{summary[name]['mean']:.2f}" for name in FIGURES]
        print(f"  {strength:>8}   {cells[0]:>12}   {cells[1]:>16}   {cells[2]:>17}   {cells[3]:>19}")


if __name__ == "__main__":
    with reported():
        main()
