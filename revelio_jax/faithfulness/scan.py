"""Scan the hook points of a pipeline, without an SAE: what do the activations of each one carry?

    revelio scan --config mini_sd
    revelio scan --config mini_sd --site clip.layer.2 --site unet.mid_block

One hook point at a time, every row is replaced by the mean of its position, and in a denoiser of its timestep. The
figures are the change of the prompt embedding, of the denoising loss, of the picture and of the judge's accuracy. If
the prompts have labels that the judge predicts, activations are also interchanged between matched prompts with
different labels: a hook point carries a label if the image then shows the label of the other prompt. Writes scan.json,
scan.md and scan.png into the folder config.run.
"""

import pathlib
import sys
import typing
from collections.abc import Sequence

import numpy as np
import tqdm

from revelio_jax import files
from revelio_jax.benchmark.judgment import DETECTED
from revelio_jax.benchmark.measurement import Interval, interval
from revelio_jax.cli import parse
from revelio_jax.errors import InputError, memory_advice, report_errors, require
from revelio_jax.faithfulness import experiment, interchange, patches, reference, scan_plot, sites, tables
from revelio_jax.faithfulness.experiment import Experiment, Inputs
from revelio_jax.faithfulness.figures import FIGURES
from revelio_jax.faithfulness.interchange import Moved, Pairs
from revelio_jax.faithfulness.patches import Clock
from revelio_jax.pipelines import dependence, hook_points, noising
from revelio_jax.pipelines.loading import load_pipeline
from revelio_jax.pipelines.sampling import MEMORY_ADVICE

FLAGS = {
    **experiment.FLAGS,
    "prompts": (16, experiment.FLAGS["prompts"][1]),
    "reference": (16, experiment.FLAGS["reference"][1]),
    "site": ((), "hook point to scan, several joined by +; may be repeated; empty: all that the output depends on"),
    "pairs": (8, "pairs of prompts for each label whose activations are interchanged; 0: none"),
}
CHANGES = {
    "embedding": "prompt embedding, relative distance",
    "loss": "denoising loss, increase",
    "pixels": "picture, pixel distance",
    "accuracy": "judge accuracy, loss of",
}


class SiteScan(typing.TypedDict):
    """The results of one hook point: the change of each figure by ablation, and the labels that interchange moves.

    ``interchange`` is by label and by the positions that are interchanged.
    """

    ablation: dict[str, Interval]
    interchange: dict[str, dict[str, Moved]]


@memory_advice(MEMORY_ADVICE)
def main(argv: Sequence[str]) -> None:
    config, flags = parse(["revelio_jax.faithfulness.scan", *argv], __doc__, **FLAGS)
    require("matplotlib", "plot", "revelio scan")
    if flags["pairs"] < 0:
        raise InputError(f"--pairs is {flags['pairs']}; it must be at least 0")
    inputs = experiment.read_inputs(config, flags)
    pipe = load_pipeline(config.model)
    with patches.running_clock(pipe) as clock:
        record = scan(pipe, inputs, clock)
    file = tables.write(config, "scan.json", record, inputs)
    table = markdown(record)
    files.write_text(file.with_suffix(".md"), table + "\n")
    with files.replacing(file.with_suffix(".png")) as part:
        scan_plot.draw(record, CHANGES).savefig(part, format="png")
    print(table)
    for path in (file, file.with_suffix(".md"), file.with_suffix(".png")):
        print(pathlib.Path(path))


def scan(pipe: typing.Any, inputs: Inputs, clock: Clock) -> dict[str, typing.Any]:
    """Return the contents of scan.json without settings. Raise InputError if a site is unknown or unused."""
    flags, config = inputs.flags, inputs.config
    names, unused = list(flags["site"]), []
    if not names:
        without = dependence.unused_in_text_encoders(pipe) | dependence.unused_in_denoiser(pipe)
        unused = sorted(without)
        names = [name for name in hook_points.point_names(pipe) if name not in without]
        if not inputs.measured:
            names = [name for name in names if hook_points.is_denoiser_point(name)]
    chosen = [sites.scanned_site(pipe, name, config.extract.positions) for name in names]
    allowed = noising.noise_schedule(pipe).config.num_train_timesteps
    timesteps = experiment.loss_timesteps(flags["timesteps"], (), allowed)
    means = reference.record(pipe, chosen, inputs, timesteps)
    run = experiment.prepare(pipe, inputs, clock, timesteps)
    pairs = _pairs(pipe, inputs)
    judge, results = inputs.judge, dict[str, SiteScan]()
    for site in tqdm.tqdm(chosen, unit="hook point", desc="scan"):
        patch = patches.PositionMean(means[site.name], clock)
        values = experiment.measure(run, site, patch, site.name)
        moved: dict[str, dict[str, Moved]] = {}
        for each in pairs:
            assert judge is not None
            moved[each.column] = {
                name: interchange.measure(pipe, each, judge, config.steer, flags["seed"], clock, site, positions)[0]
                for name, positions in interchange.selections(pipe, site, each).items()
            }
        changes = {figure: interval(_change(run, values, figure)) for figure in FIGURES if figure in values}
        results[site.name] = {"ablation": changes, "interchange": moved}
    plain = {
        each.column: interchange.measure(pipe, each, judge, config.steer, flags["seed"], clock)
        for each in pairs
        if judge is not None
    }
    return {
        "samples": {"images": len(run.noised.seeds), "prompts": len(inputs.measured), "loss_timesteps": timesteps},
        "plain": {
            figure: interval(values[~np.isnan(values)])
            for figure in ("loss", "accuracy")
            if figure in run.plain and not np.isnan(values := experiment.per_sample(run.plain, figure)).all()
        },
        "plain_pairs": {column: {"first": first, "second": second} for column, (first, second) in plain.items()},
        "pairs": {
            each.column: [[a["prompt"], b["prompt"]] for a, b in zip(each.first, each.second, strict=True)]
            for each in pairs
        },
        "unused": unused,
        "sites": results,
    }


def _pairs(pipe: typing.Any, inputs: Inputs) -> list[Pairs]:
    """Return the pairs of each judged label; none without pictures, labels or a judge of labels."""
    flags, judge = inputs.flags, inputs.judge
    if judge is None or not flags["pairs"] or not flags["picture"]:
        return []
    columns = [column for column in judge.columns if column != DETECTED and column in inputs.labeled[0]]
    found = [
        interchange.find_pairs(pipe, inputs.labeled, columns, column, flags["pairs"], flags["seed"])
        for column in columns
    ]
    return [each for each in found if each is not None]


def _change(run: Experiment, values: experiment.Values, figure: str) -> np.ndarray:
    """Return the change of a figure by ablation, [N]; for accuracy the loss, so that more is always more damage."""
    changed_N, plain_N = experiment.per_sample(values, figure), experiment.per_sample(run.plain, figure)
    change_N = changed_N - plain_N if figure != "accuracy" else plain_N - changed_N
    return change_N[~np.isnan(change_N)]


def markdown(record: dict[str, typing.Any]) -> str:
    """Return the results as Markdown tables: one of ablation, and one of interchange if there are pairs."""
    scans: dict[str, SiteScan] = record["sites"]
    shown = [figure for figure in CHANGES if any(figure in each["ablation"] for each in scans.values())]
    lines = [
        "| hook point | " + " | ".join(CHANGES[figure] for figure in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for name, each in scans.items():
        cells = [_cell(each["ablation"].get(figure)) for figure in shown]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    columns = record["pairs"]
    if columns:
        heading = [f"{column}: share of images with the other prompt's label" for column in columns]
        lines += ["", "| hook point | interchanged | " + " | ".join(heading) + " |", "|---" * (len(columns) + 2) + "|"]
        for which, text in (("first", "nothing"), ("second", "the prompt")):
            cells = [_cell(record["plain_pairs"][column][which]["second"]) for column in columns]
            lines.append(f"| | {text} | " + " | ".join(cells) + " |")
        for name, each in scans.items():
            selections = dict.fromkeys(s for moved in each["interchange"].values() for s in moved)
            for selection in selections:
                moved = [each["interchange"].get(column, {}).get(selection) for column in columns]
                cells = [_cell(m["second"] if m else None) for m in moved]
                lines.append(f"| `{name}` | {selection} | " + " | ".join(cells) + " |")
    if record["unused"]:
        lines += ["", f"No output depends on: {', '.join(record['unused'])}."]
    return "\n".join(lines)


def _cell(value: Interval | None) -> str:
    return "{mean:.3f} ({low:.2f}-{high:.2f})".format(**value) if value else ""


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
