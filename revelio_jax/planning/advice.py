"""Single changes of a run that make it much faster by the model."""

import dataclasses
import typing
from collections.abc import Sequence

from revelio_jax.planning.chips import Chip
from revelio_jax.planning.model import Estimate, estimate
from revelio_jax.planning.work import StepWork

GAIN = 1.2  # smaller gains are within the model's error


def advise(work: StepWork, meshes: Sequence[tuple[int, int]], mesh: tuple[int, int], chip: Chip) -> list[str]:
    """Return a line for each kind of change (mesh, batch, dtype, form of products) with more than GAIN rows/s.

    ``meshes`` are all meshes that divide the batch and the latents.
    """
    config = work.config
    now = estimate(work, mesh, chip)

    def gain(work: StepWork, mesh: tuple[int, int]) -> float:
        then = estimate(work, mesh, chip)
        return _rows_s(work, then) / _rows_s(config_work, now) if then.bytes <= chip.hbm else 0.0

    config_work = work
    lines: list[str] = []

    def consider(gain: float, change: str, note: str = "") -> bool:
        if gain > GAIN:
            lines.append(f"advice: {change}: {gain:.1f} x the rows/s by the model{note}")
        return gain > GAIN

    best = max(meshes, key=lambda other: gain(work, other))
    consider(gain(work, best), "--mesh {}x{}".format(*best))
    for factor in (2, 4):
        size = factor * config.train.batch_size
        note = f"; {config.train.steps // factor:,} steps then see the same rows, with fewer updates"
        if consider(gain(_train(work, batch_size=size), mesh), f"--config.train.batch_size={size}", note):
            break
    if config.sae.matmul_dtype != "bfloat16":
        faster = gain(_sae(work, matmul_dtype="bfloat16"), mesh)
        consider(faster, "--config.sae.matmul_dtype=bfloat16", "; sums stay float32")
    for form in ("sparse", "dense"):
        consider(gain(_sae(work, products=form), mesh), f"--config.sae.products={form}")
    return lines


def _rows_s(work: StepWork, estimate: Estimate) -> float:
    return work.config.train.batch_size / estimate.seconds


def _train(work: StepWork, **changes: typing.Any) -> StepWork:
    train = dataclasses.replace(work.config.train, **changes)
    return dataclasses.replace(work, config=dataclasses.replace(work.config, train=train))


def _sae(work: StepWork, **changes: typing.Any) -> StepWork:
    sae = dataclasses.replace(work.config.sae, **changes)
    return dataclasses.replace(work, config=dataclasses.replace(work.config, sae=sae))
