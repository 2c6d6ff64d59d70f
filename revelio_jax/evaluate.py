"""Evaluate a checkpoint of a run on held-out rows.

    revelio evaluate --config mini_sd
    revelio evaluate --config mini_sd --config.train.use=best
    revelio evaluate --config mini_sd --compare runs/OTHER
    revelio evaluate --config mini_sd --sae FOLDER --config.run=runs/imported

config.train.use chooses the checkpoint: ``newest``, the default, or ``best``, the one with the lowest FVU in
training. Writes evaluation.json into the folder config.run. Reads the run folder and the held-out rows of its
stores; training may still be running.

--compare measures stability against other runs with an export, for example of other seeds: the mean cosine of matched
decoder rows, and the share of latents whose cosine is above 0.7.

--sae evaluates an SAE folder, for example of SAELens or sparsify, on the same held-out rows. config.run is then the
folder of its evaluation.json. It must not be the folder of a training run.
"""

import json
import pathlib
import sys
import typing
from collections.abc import Sequence

import jax
import numpy as np
from tqdm import tqdm

from revelio_jax import run_folders
from revelio_jax.cli import parse
from revelio_jax.config import Config, SaeConfig
from revelio_jax.errors import InputError, memory_advice, report_errors
from revelio_jax.evaluation import groups, imported
from revelio_jax.evaluation.quality import Quality, measure
from revelio_jax.evaluation.redundancy import Redundancy, redundancy
from revelio_jax.evaluation.stability import SHARED, Stability, stability
from revelio_jax.files import write_text
from revelio_jax.sae import sharding
from revelio_jax.sae_folder import reader
from revelio_jax.training import loader
from revelio_jax.training.mixture import Mixture
from revelio_jax.training.run import make_order, open_run, restore_run
from revelio_jax.training.step import State

FLAGS = {
    "compare": ((), "folder of a run with an export, to measure stability against; may be repeated"),
    "sae": (None, "SAE folder to evaluate; None: a checkpoint of the run"),
}


class Autoencoder(typing.TypedDict):
    """The evaluated SAE: its architecture with the options that change the loss, and its size.

    ``imported`` is the SAE folder, None for a checkpoint of the run.
    """

    architecture: str
    latents: int
    width: int
    k: int | None
    imported: str | None


class Evaluation(Quality):
    """The contents of evaluation.json. An imported SAE has no step and no dead latents in training.

    ``stores`` is the fingerprint of the stores and of their shares of the rows.
    """

    step: int | None
    site: str
    stores: str
    autoencoder: Autoencoder
    dead_fraction_train: float | None
    redundancy: Redundancy | None
    stability: dict[str, Stability]  # by the folder of the other run


def evaluate(config: Config, compare: Sequence[str] = (), sae: str | None = None) -> Evaluation:
    """Evaluate the checkpoint that config.train.use chooses, the newest or the best, or the SAE folder ``sae``.

    ``compare`` are the folders of other runs, for stability. Write evaluation.json and return its contents. Raise
    InputError if no rows are held out, if the run has no checkpoint of this configuration, or if another run has no
    export or another width. With ``sae``, raise it if the SAE does not fit the rows, or if the run has checkpoints.
    """
    options = config.train
    folder, mixture = open_run(config)
    others_FD = {run: _decoder(run, mixture.sites[0].d) for run in compare}
    state, mesh, settings = _imported(config, folder, mixture, sae) if sae else _checkpoint(config, mixture)
    order = make_order(config, mixture)
    if not order.held_out:
        raise InputError("config.data.held_out is 0; it must be above 0 to hold out rows for evaluation")
    total, partitions = loader.length(order.held_out), groups.groupings(mixture, order)
    rows = groups.labeled_rows(mixture, order, options.batch_size, partitions)
    bar = tqdm(rows, total=-(-total // options.batch_size), unit="batch", dynamic_ncols=True)
    quality, fires_F = measure(state, bar, partitions, settings, options.batch_size, mesh)
    W_dec_FD = np.asarray(state.best_params["W_dec_FD"])
    dead_F = state.rows_since_fired_F >= config.sae.dead_after_rows
    result: Evaluation = {
        "step": None if sae else int(state.step),
        "site": mixture.name,
        "stores": mixture.fingerprint,
        "autoencoder": {
            "architecture": architecture_name(settings),
            "latents": W_dec_FD.shape[0],
            "width": W_dec_FD.shape[1],
            "k": None if settings.architecture == "dense" or (sae and settings.architecture != "topk") else settings.k,
            "imported": sae,
        },
        **quality,
        "dead_fraction_train": None if sae else float(dead_F.mean()),
        "redundancy": redundancy(W_dec_FD, fires_F),
        "stability": {run: stability(W_dec_FD, other_FD) for run, other_FD in others_FD.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "evaluation.json", json.dumps(result, indent=1) + "\n")
    run_folders.push(folder)
    return result


def architecture_name(sae: SaeConfig) -> str:
    """Return the architecture with the options that make it another one: Matryoshka and MultiTopK."""
    options = ["Matryoshka"] * bool(sae.prefixes) + ["MultiTopK"] * bool(sae.multi_topk)
    return " ".join([sae.architecture, *options])


def _checkpoint(config: Config, mixture: Mixture) -> tuple[State, jax.sharding.Mesh, SaeConfig]:
    _, _, state, mesh = restore_run(config, mixture)
    return state, mesh, config.sae


def _imported(
    config: Config, folder: pathlib.Path, mixture: Mixture, sae: str
) -> tuple[State, jax.sharding.Mesh, SaeConfig]:
    """Return the state of an SAE folder, its mesh and its settings."""
    if (folder / "checkpoints").exists():
        raise InputError(f"config.run is {config.run!r}, which has checkpoints; with --sae it must be another folder")
    content = reader.read_folder(sae, needs_site=False)
    imported.check(sae, content, mixture)
    settings = imported.sae_config(content, config.sae)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.feature, config.train.batch_size, content.W_dec_FD.shape[0])
    return imported.state(content, settings.architecture, mesh), mesh, settings


def _decoder(run: str, d: int) -> np.ndarray:
    """Return the decoder rows [F, d] of the export of a run."""
    W_dec_FD = reader.read_folder(pathlib.Path(run, "export"), needs_site=False).W_dec_FD
    if W_dec_FD.shape[1] != d:
        raise InputError(f"--compare is {run!r}, an SAE of width {W_dec_FD.shape[1]}; it must have width {d}")
    return W_dec_FD


def describe(result: Evaluation) -> str:
    """Return the lines to print: all rows, the latents, and a table of the groups."""
    lines = [
        ("" if result["step"] is None else f"step {result['step']}, ")
        + "{rows:,} held-out rows: FVU {fvu:.5f}, cosine {cosine:.5f}, L0 {l0:.1f}, "
        "dead {dead_fraction:.1%} on these rows".format(**result)
        + ("" if result["dead_fraction_train"] is None else f", {result['dead_fraction_train']:.1%} in training"),
        "{always_firing} latents fire on more than 10% of the rows".format(**result),
    ]
    if result["redundancy"]:
        low, middle, high = result["redundancy"]["quartiles"]
        lines[-1] += f"; the largest cosine of a latent with another has quartiles {low:.2f}, {middle:.2f}, {high:.2f}"
    for run, of_run in result["stability"].items():
        lines.append(
            f"{run}: {of_run['shared']:.1%} of {of_run['latents']:,} matched latents have a cosine above {SHARED}; "
            f"mean cosine {of_run['mean_cosine']:.3f} ({of_run['matching']} matching)"
        )
    for grouping, qualities in result["groups"].items():
        lines.append(f"{grouping:<12} {'rows':>9} {'FVU':>8} {'cosine':>8} {'L0':>6} {'dead':>6}")
        row = "{name:<12} {rows:>9,} {fvu:>8.5f} {cosine:>8.5f} {l0:>6.1f} {dead_fraction:>6.1%}"
        lines += [row.format(name=name, **each) for name, each in qualities.items()]
    return "\n".join(lines)


@memory_advice("use more devices: config.mesh.feature")
def main(argv: Sequence[str]) -> None:
    config, flags = parse(["revelio_jax.evaluate", *argv], __doc__, **FLAGS)
    print(describe(evaluate(config, flags["compare"], flags["sae"])))


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
