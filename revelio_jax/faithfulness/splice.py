"""Splice an SAE into its pipeline: measure what is lost if the SAE's reconstruction replaces the activations.

    revelio splice --config mini_sd
    revelio splice --config mini_sd_unet

Writes splice.json into the folder config.run and prints a table. Figures are the distance of the prompt embedding, the
denoising loss on noised images with fixed noise, the pixel distance to the plain image of the same seed, and the
accuracy of the judge. The recovered share of a figure is (mean-ablated - spliced) / (mean-ablated - plain): 1 if the
SAE loses nothing, 0 if it is as bad as the mean of its rows. Other rows of the table show whether a figure can tell a
trained SAE from others: a random dictionary and an untrained SAE of the same shape, zeros, and the mean of each
position. Only rows that the SAE was trained on are replaced.
"""

import pathlib
import sys
import typing
from collections.abc import Sequence

import numpy as np

from revelio_jax.benchmark.measurement import Interval, interval
from revelio_jax.cli import load, parse
from revelio_jax.config import Config, resolve
from revelio_jax.errors import InputError, memory_advice, report_errors
from revelio_jax.faithfulness import baselines, experiment, patches, reference, shares, sites, tables
from revelio_jax.faithfulness.experiment import Experiment, Inputs, Values
from revelio_jax.faithfulness.figures import FIGURES
from revelio_jax.faithfulness.means import ActivationMeans
from revelio_jax.faithfulness.patches import Clock, Patch
from revelio_jax.faithfulness.sites import Site
from revelio_jax.pipelines import noising
from revelio_jax.pipelines.families import family_of
from revelio_jax.pipelines.loading import load_pipeline
from revelio_jax.pipelines.sampling import MEMORY_ADVICE
from revelio_jax.steering.compatibility import same_model
from revelio_jax.steering.sae import Sae, load_sae

SAE, MEAN = "trained SAE", "mean"
ROW_FIELDS = ("timesteps", "pool")
UNTRAINED = ("random dictionary", "untrained SAE")
FLAGS = {**experiment.FLAGS, "sae": (None, "SAE folder; None: the export of the run")}


class FigureResult(typing.TypedDict):
    """One figure of every row. ``recovered`` is {} if ``undefined`` says why the share is not defined.

    ``not_above`` lists the untrained rows from which the figure cannot tell the trained SAE.
    """

    plain: Interval
    values: dict[str, Interval]
    recovered: dict[str, Interval]
    undefined: str | None
    not_above: list[str]


@memory_advice(MEMORY_ADVICE)
def main(argv: Sequence[str]) -> None:
    config, flags = parse(["revelio_jax.faithfulness.splice", *argv], __doc__, **FLAGS)
    inputs = experiment.read_inputs(config, flags)
    if not flags["sae"]:
        _check_trained_rows(config)
    sae = load_sae(flags["sae"] or pathlib.Path(config.run or "", "export"))
    trained_on = sae.metadata.get("model_id")
    if trained_on and not same_model(trained_on, config.model.id or ""):
        raise InputError(f"config.model.id is {config.model.id!r}; the SAE was trained on {trained_on!r}")
    pipe = load_pipeline(config.model)
    with patches.running_clock(pipe) as clock:
        results, record = splice(pipe, sae, inputs, clock)
    file = tables.write(config, "splice.json", record, inputs)
    print(describe(results, sae.site, record["samples"], record["notes"]))
    print(file)


def _check_trained_rows(config: Config) -> None:
    """Raise InputError if the run was trained with other fields of config.extract that select rows.

    The SAE folder does not name them, and other rows would give figures of another SAE.
    """
    path = pathlib.Path(config.run or "", "config.json")
    if not path.is_file():
        return
    trained = resolve(load(str(path))).extract
    for name in ROW_FIELDS:
        if (given := getattr(config.extract, name)) != (wanted := getattr(trained, name)):
            raise InputError(
                f"config.extract.{name} is {given!r}; the run was trained with {wanted!r}: use --config {path}"
            )


def splice(
    pipe: typing.Any, sae: Sae, inputs: Inputs, clock: Clock
) -> tuple[dict[str, FigureResult], dict[str, typing.Any]]:
    """Return the results by figure, and the contents of splice.json without settings.

    Raise InputError if the SAE does not fit, or if mean-ablation changes no figure.
    """
    config = inputs.config
    site = sites.trained_site(pipe, sae, config)
    allowed = noising.noise_schedule(pipe).config.num_train_timesteps
    timesteps = experiment.loss_timesteps(inputs.flags["timesteps"], site.timesteps, allowed)
    notes: list[str] = []
    with_picture = _acts_in_pictures(pipe, site, inputs, notes)
    means = reference.record(pipe, [site], inputs, timesteps, keep_rows=max(4096, sae.n_latents))[site.name]
    if means.is_empty:
        raise InputError(
            f"no activations of {site.name} were recorded: config.steer.steps is {config.steer.steps}, and no step has "
            f"one of the timesteps {', '.join(map(str, site.timesteps))}; set it to the value of config.extract.steps"
        )
    run = experiment.prepare(pipe, inputs, clock, timesteps)
    rows = {
        name: experiment.measure(run, site, patch, name, with_picture=with_picture)
        for name, patch in _patches(sae, means, clock, inputs.flags["seed"]).items()
    }
    results = {figure: _result(run, rows, figure) for figure in FIGURES if figure in rows[SAE]}
    undefined = [result["undefined"] for result in results.values() if result["undefined"]]
    if len(undefined) == len(results):
        raise InputError(f"mean-ablation of {site.name}: {undefined[0]}")
    record = {
        "site": site.name,
        "sae": sae.metadata,
        "rows": {"positions": site.positions, "timesteps": list(site.timesteps), "difference": site.difference},
        "samples": {"images": len(run.noised.seeds), "prompts": len(inputs.measured), "loss_timesteps": timesteps},
        "notes": notes,
        "figures": results,
        "loss_by_timestep": _by_timestep(run, rows),
    }
    return results, record


def _patches(sae: Sae, means: ActivationMeans, clock: Clock, seed: int) -> dict[str, Patch]:
    rows_ND = means.rows()
    return {
        SAE: patches.Reconstruction(sae),
        UNTRAINED[0]: patches.Reconstruction(baselines.random_dictionary(sae, rows_ND, seed)),
        UNTRAINED[1]: patches.Reconstruction(baselines.untrained(sae, rows_ND, seed)),
        "position mean": patches.PositionMean(means, clock),
        MEAN: patches.Mean(means.mean()),
        "zero": patches.zeros,
    }


def _acts_in_pictures(pipe: typing.Any, site: Site, inputs: Inputs, notes: list[str]) -> bool:
    """Return whether a step of sampling has a trained timestep; add a note if none has."""
    if site.is_text or not site.timesteps or not inputs.measured:
        return True
    size = experiment.settings_of(inputs.measured, inputs.config, 0).size
    steps = sites.schedule(pipe, inputs.config.steer.steps, size)
    count = sum(patches.is_trained(step, site.timesteps, family_of(pipe).timestep_scale) for step in steps)
    if count:
        notes.append(f"the pictures are spliced at {count} of {len(steps)} steps, those of the trained timesteps")
    elif inputs.flags["picture"]:
        notes.append("no picture: none of the steps of config.steer.steps has a trained timestep")
    return count > 0


def _result(run: Experiment, rows: dict[str, Values], figure: str) -> FigureResult:
    by_row = {name: experiment.per_sample(values, figure) for name, values in rows.items()}
    plain_N = experiment.per_sample(run.plain, figure)
    counted_N = ~np.isnan(plain_N)  # prompts without a judged label have no accuracy
    plain_N, by_row = plain_N[counted_N], {name: values_N[counted_N] for name, values_N in by_row.items()}
    recovered: dict[str, Interval] = {}
    undefined, not_above = None, []
    try:
        recovered = {n: shares.recovered_share(plain_N, values_N, by_row[MEAN]) for n, values_N in by_row.items()}
        not_above = [n for n in UNTRAINED if not shares.is_above(by_row[SAE], by_row[n], by_row[MEAN], plain_N)]
    except InputError as error:
        undefined = str(error)
    values = {name: interval(values_N) for name, values_N in by_row.items()}
    return {
        "plain": interval(plain_N),
        "values": values,
        "recovered": recovered,
        "undefined": undefined,
        "not_above": not_above,
    }


def _by_timestep(run: Experiment, rows: dict[str, Values]) -> dict[str, dict[str, float]]:
    """Return the mean loss of every row at each timestep."""
    by_row = {"plain": run.plain["loss"], **{name: values["loss"] for name, values in rows.items()}}
    return {
        str(timestep): {name: float(loss_NT[:, i].mean()) for name, loss_NT in by_row.items()}
        for i, timestep in enumerate(run.noised.timesteps)
    }


def describe(
    results: dict[str, FigureResult], site: str, samples: dict[str, typing.Any], notes: Sequence[str] = ()
) -> str:
    """Return the table to print: the value and the recovered share of each row and figure."""
    lines = [f"{site}, {samples['prompts']} prompts, {samples['images']} images of the loss"]
    for figure, result in results.items():
        lines += ["", f"{FIGURES[figure]:<34} {'value':>10}   recovered share (95 % interval)"]
        lines.append(f"  {'plain':<32} {result['plain']['mean']:>10.4f}")
        for name, value in result["values"].items():
            share = result["recovered"].get(name)
            text = "{mean:>8.3f} ({low:.3f} to {high:.3f})".format(**share) if share else ""
            lines.append(f"  {name:<32} {value['mean']:>10.4f}   {text}".rstrip())
        if result["undefined"]:
            lines.append(f"  {result['undefined']}")
        elif result["not_above"]:
            lines.append(f"  this figure does not rank the trained SAE above: {', '.join(result['not_above'])}")
    return "\n".join([*lines, *([""] if notes else []), *notes])


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
