"""The data sets of quality.py: planted directions, and activation stores."""

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from revelio_jax import cli
from revelio_jax.config import resolve
from revelio_jax.errors import InputError
from revelio_jax.training import loader
from revelio_jax.training.mixture import open_mixture
from revelio_jax.training.run import normalization

D, DIRECTIONS, ACTIVE, NOISE = 64, 256, 8, 0.05
PLANTED = {  # data set: exponent of the frequencies, dictionary size
    "uniform-512": (0.0, 512),
    "uniform-4096": (0.0, 4096),
    "zipf-512": (1.5, 512),
    "zipf-4096": (1.5, 4096),
}
STORES = ("mini_sd", "mini_flux", "minilm")  # data sets, configs, and folders of the stores
NAMES = (*PLANTED, *STORES)
TRAIN, HELD_OUT = 0, 1  # streams of random numbers


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set and the sizes to train on it.

    ``batches()`` yields the same [batch, d] float32 every time. All rows are centered and scaled. ``directions_PD``
    are the planted directions, or None.
    """

    name: str
    latents: int
    k: int
    batch: int
    steps: int
    dead_after_rows: int
    batches: Callable[[], Iterator[np.ndarray]]
    held_out_ND: np.ndarray
    directions_PD: np.ndarray | None = None


def check(names: list[str], stores: str) -> None:
    """Raise InputError if a data set is unknown or its store is missing."""
    for name in names:
        if name not in NAMES:
            raise InputError(f"--data has {name!r}; it must be one of {', '.join(NAMES)}")
        if name in STORES and not (pathlib.Path(stores) / name / "manifest.json").exists():
            location = str(pathlib.Path(stores) / name)
            raise InputError(f"{location!r} is not a finished store; run revelio extract --config {name}")


def make_task(name: str, seed: int, stores: str, steps: int | None = None) -> Task:
    """Return a data set. ``seed`` determines planted rows, or the order of a store's rows and its held-out chunks.

    ``steps`` replaces 4000 steps of planted rows, or those of the config, whose ``dead_after_rows`` changes with them.
    """
    return planted(name, seed, *PLANTED[name], steps) if name in PLANTED else stored(name, seed, stores, steps)


def planted(name: str, seed: int, exponent: float, latents: int, steps: int | None) -> Task:
    """Return sums of ACTIVE of DIRECTIONS random unit directions, plus noise and a large offset.

    Direction i, from 1, is drawn in proportion to i^-exponent.
    """
    random, batch = np.random.default_rng(seed), 512
    directions_PD = unit(random.normal(size=(DIRECTIONS, D)))
    offset_D = 3 * random.normal(size=D)
    use_P = np.arange(1, DIRECTIONS + 1) ** -exponent

    def rows(*stream: int) -> np.ndarray:
        random = np.random.default_rng((seed, *stream))
        # The first ACTIVE arrivals of Poisson processes: drawn in proportion to use, without repetition.
        arrival_BP = random.standard_exponential((batch, DIRECTIONS)) / use_P
        active_BK = np.argpartition(arrival_BP, ACTIVE, axis=1)[:, :ACTIVE]
        code_BP = np.zeros((batch, DIRECTIONS))
        np.put_along_axis(code_BP, active_BK, random.uniform(0.5, 1.5, active_BK.shape), axis=1)
        return offset_D + code_BP @ directions_PD + NOISE * random.normal(size=(batch, D))

    sample_ND = np.concatenate([rows(TRAIN, step) for step in range(64)])
    mean_D = sample_ND.mean(0)
    scale = np.sqrt(sample_ND.var(0).mean())

    def normalize(x_BD: np.ndarray) -> np.ndarray:
        return ((x_BD - mean_D) / scale).astype(np.float32)

    return Task(
        name,
        latents,
        ACTIVE,
        batch,
        steps=steps or 4000,
        dead_after_rows=50_000,
        batches=lambda: (normalize(rows(TRAIN, step)) for step in itertools.count()),
        held_out_ND=np.concatenate([normalize(rows(HELD_OUT, i)) for i in range(128)]),
        directions_PD=directions_PD,
    )


def stored(name: str, seed: int, stores: str, steps: int | None) -> Task:
    """Return the rows of a store, with the sizes of the config of the same name."""
    config = resolve(cli.load(name))
    sae, batch = config.sae, config.train.batch_size
    mixture = open_mixture([f"1:{pathlib.Path(stores) / name}"])
    order = loader.make_order(mixture, seed, batch, config.data.buffer_chunks, held_out=0.2)
    mean_D, scale = normalization("center_scale", mixture)

    def batches() -> Iterator[np.ndarray]:
        with contextlib.closing(loader.batches(mixture, order, 0)) as stored_batches:
            for x_BD in stored_batches:
                yield (x_BD - mean_D) / np.float32(scale)

    held_out_ND = np.concatenate(list(loader.held_out_rows(mixture, order, batch)))
    steps = steps or config.train.steps
    # Otherwise no latent could be dead, and AuxK would not act, in a run that is short enough.
    dead_after_rows = sae.dead_after_rows * steps // config.train.steps
    return Task(
        name,
        sae.latents or sae.expansion * mixture.d,
        sae.k,
        batch,
        steps,
        max(dead_after_rows, 1),
        batches,
        (held_out_ND - mean_D) / np.float32(scale),
    )


def unit(W_FD: np.ndarray) -> np.ndarray:
    """Return rows scaled to norm 1."""
    return W_FD / np.maximum(np.linalg.norm(W_FD, axis=1, keepdims=True), 1e-30)
