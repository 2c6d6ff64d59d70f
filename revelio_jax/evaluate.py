"""Evaluate a checkpoint of a run on held-out rows.

    revelio evaluate --config mini_sd
    revelio evaluate --config mini_sd --config.train.use=best

config.train.use chooses the checkpoint: ``newest``, the default, or ``best``, the one with the lowest FVU in
training. Writes evaluation.json into the folder config.run. Reads the run folder and the held-out rows of its
stores; training may still be running.
"""

import functools
import json
import sys
import typing
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from tqdm import tqdm

from revelio_jax import run_folders
from revelio_jax.cli import parse
from revelio_jax.config import Config, SaeConfig
from revelio_jax.errors import InputError, memory_advice, report_errors
from revelio_jax.files import write_text
from revelio_jax.sae import SparseAutoencoder, forms, sharding
from revelio_jax.training import loader
from revelio_jax.training.run import make_order, open_run, restore_run
from revelio_jax.training.step import State

DENSITY_EDGES = np.linspace(-8, 0, 33)  # log10 of the share of rows on which a latent fires


class DensityHistogram(typing.TypedDict):
    """The number of latents by the log10 of the share of rows on which they fire; dead latents are left out."""

    log10_edges: list[float]
    latents: list[int]


class Quality(typing.TypedDict):
    """Reconstruction quality over a set of rows."""

    rows: int
    fvu: float
    explained_variance: float
    cosine: float
    l0: float
    dead_fraction: float
    density_histogram: DensityHistogram


class Evaluation(Quality):
    """The contents of evaluation.json."""

    step: int
    site: str
    dead_fraction_train: float


def evaluate(config: Config) -> Evaluation:
    """Evaluate the checkpoint that config.train.use chooses, the newest or the best.

    Write evaluation.json and return its contents. Raise InputError if no rows are held out or if the run has no
    checkpoint of this configuration.
    """
    options = config.train
    _, mixture = open_run(config)
    folder, _, state, mesh = restore_run(config, mixture)
    order = make_order(config, mixture)
    if not order.held_out:
        raise InputError("config.data.held_out is 0; it must be above 0 to hold out rows for evaluation")
    total = loader.length(order.held_out)
    rows = loader.held_out_rows(mixture, order, options.batch_size)
    bar = tqdm(rows, total=-(-total // options.batch_size), unit="batch", dynamic_ncols=True)
    quality = measure(state, bar, config.sae, options.batch_size, mesh)
    dead_F = state.rows_since_fired_F >= config.sae.dead_after_rows
    result: Evaluation = {
        "step": int(state.step),
        "site": mixture.name,
        **quality,
        "dead_fraction_train": float(dead_F.mean()),
    }
    write_text(folder / "evaluation.json", json.dumps(result, indent=1) + "\n")
    run_folders.push(folder)
    return result


def make_reconstruct(sae: SaeConfig, mesh: jax.sharding.Mesh) -> Callable[..., typing.Any]:
    """Return the compiled ``reconstruct(state, x_BD, valid_B) -> (x_hat_BD, fired_F, active)``.

    x_BD are stored rows, x_hat_BD normalized reconstructions. Only rows with ``valid_B`` are counted. fired_F, int32,
    is the number of rows on which each latent is above ``dead_threshold``. active is the number of positive values
    over all latents.
    """

    def local(params, threshold, x_BD, valid_B, sae):
        model = SparseAutoencoder(params, sae)
        code = model.infer(x_BD, threshold)
        x_hat_BD = model.decode(code)
        code = code.where(valid_B[:, None])
        fired_F = jax.lax.psum(code.count(len(params["b_enc_F"]), sae.dead_threshold), "data")
        return x_hat_BD, fired_F, jax.lax.psum((code.values > 0).sum(), sharding.AXES)

    @jax.jit
    def reconstruct(state, x_BD, valid_B):
        return jax.shard_map(
            functools.partial(local, sae=forms.resolved(sae, len(state.rows_since_fired_F), mesh)),
            mesh=mesh,
            in_specs=(
                sharding.params(sae.architecture),
                sharding.REPLICATED,
                sharding.BATCH,
                sharding.ROWS,
            ),
            out_specs=(sharding.BATCH, sharding.LATENTS, sharding.REPLICATED),
        )(state.best_params, state.threshold, (x_BD - state.mean_D) / state.scale, valid_B)

    return reconstruct


def measure(
    state: State, batches: Iterable[np.ndarray], sae: SaeConfig, batch_size: int, mesh: jax.sharding.Mesh
) -> Quality:
    """Return the reconstruction quality over all rows of ``batches``, in units of the stored rows.

    Sums are float64. FVU = E / (Q - |S|^2 / N), with E the sum of squared errors, S the sum of the rows and Q
    the sum of their squares. S and Q are taken about the training mean, which only reduces rounding errors.
    ``dead_fraction`` is the share of latents that are never above ``dead_threshold``.
    """
    reconstruct = make_reconstruct(sae, mesh)
    mean_D, scale = np.asarray(state.mean_D, np.float64), float(state.scale)
    rows, active, error, squares, cosine = 0, 0, 0.0, 0.0, 0.0
    sum_D, fired_F = np.zeros(len(mean_D)), np.zeros(len(state.rows_since_fired_F), np.int64)
    for x_ND in batches:
        count = len(x_ND)
        x_BD = np.pad(x_ND, ((0, batch_size - count), (0, 0)))  # one shape compiles once
        x_hat_BD, fired, positive = reconstruct(state, x_BD, np.arange(batch_size) < count)
        x_ND = x_ND.astype(np.float64)
        x_hat_ND = mean_D + scale * np.asarray(x_hat_BD[:count], np.float64)
        rows += count
        active += int(positive)
        fired_F += np.asarray(fired)
        error += np.square(x_ND - x_hat_ND).sum()
        norms_N = np.linalg.norm(x_ND, axis=1) * np.linalg.norm(x_hat_ND, axis=1)
        cosine += ((x_ND * x_hat_ND).sum(1) / np.maximum(norms_N, 1e-30)).sum()
        sum_D += (x_ND - mean_D).sum(0)
        squares += np.square(x_ND - mean_D).sum()
    fvu = float(error / max(squares - sum_D @ sum_D / rows, 1e-300))
    histogram, _ = np.histogram(np.log10(fired_F[fired_F > 0] / rows), DENSITY_EDGES)
    return {
        "rows": rows,
        "fvu": fvu,
        "explained_variance": 1 - fvu,
        "cosine": float(cosine / rows),
        "l0": active / rows,
        "dead_fraction": float((fired_F == 0).mean()),
        "density_histogram": {"log10_edges": DENSITY_EDGES.tolist(), "latents": histogram.tolist()},
    }


@memory_advice("use more devices: config.mesh.feature")
def main(argv: Sequence[str]) -> None:
    config, _ = parse(["revelio_jax.evaluate", *argv], __doc__)
    result = evaluate(config)
    print(
        "step {step}, {rows:,} held-out rows: FVU {fvu:.5f}, cosine {cosine:.5f}, L0 {l0:.1f}, "
        "dead {dead_fraction:.1%} on these rows, {dead_fraction_train:.1%} in training".format(**result)
    )


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
