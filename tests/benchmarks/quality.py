"""Compare what this project and three other libraries learn from the same rows in the same order.

    bash tests/benchmarks/peers.sh      # once: creates .venv-peers with the other libraries
    revelio extract --config mini_sd  # once: creates the miniature's store
    python tests/benchmarks/quality.py --json quality.json
    python tests/benchmarks/quality.py --json quality.json --data planted --systems revelio_jax --steps 200

Data sets:

    planted    rows of width 64, each a sum of 8 of 256 known unit directions, plus noise and a large offset; the most
               frequent direction is used 256 times as often as the least frequent
    miniature  the activations of the quickstart

All systems get the same batches, centered and scaled in the same way, and the same dictionary size, k, peak learning
rate of Adam, warm-up over a tenth of the steps, decay to 0 over the rest, and number of rows after which a latent
counts as dead. AuxK is on; everything else is the system's own default. One evaluator scores each system's own
reconstructions of held-out rows.

Prints a table. With --json also writes its rows: {data, system, seed, learning_rate, k, rows, fvu, dead_fraction, mmcs,
matched}. ``rows`` is the number of training rows. ``dead_fraction`` is the share of latents that are 0 on all held-out
rows. For planted directions, ``mmcs`` is the mean of the largest cosine with a decoder row, and ``matched`` the share
of directions with a cosine above 0.9; both are null for the miniature.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
import typing
from collections.abc import Callable, Iterator

import numpy as np
import results
from learning import Learning
from train_step import OURS, PEERS, PYTHON_OF_PEERS, parse_systems

from revelio_jax.config import SaeConfig, TrainConfig
from revelio_jax.errors import InputError, report_errors
from revelio_jax.evaluate import make_reconstruct
from revelio_jax.sae import initial, sharding
from revelio_jax.training import loader
from revelio_jax.training.mixture import open_mixture
from revelio_jax.training.run import normalization
from revelio_jax.training.step import initial_state, make_train_step

LATENTS, DEAD_AFTER_ROWS = 512, 50_000
BATCH = {"planted": 512, "miniature": 2048}
STEPS = {"planted": 4000, "miniature": 3000}
D, DIRECTIONS, ACTIVE, NOISE = 64, 256, 8, 0.05  # of the planted data
K = {"planted": ACTIVE, "miniature": 20}


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set. ``batches()`` yields the same [batch, d] float32 every time; all rows are centered and scaled."""

    name: str
    batches: Callable[[], Iterator[np.ndarray]]
    held_out_ND: np.ndarray
    directions_PD: np.ndarray | None = None

    @property
    def batch(self) -> int:
        return BATCH[self.name]

    @property
    def k(self) -> int:
        return K[self.name]


class Learned(typing.NamedTuple):
    """A trained SAE: reconstructions of the held-out rows, latents that fire on any of them, decoder rows."""

    x_hat_ND: np.ndarray
    fired_F: np.ndarray
    W_dec_FD: np.ndarray


def planted() -> Task:
    """Return the data set of planted directions."""
    random, batch = np.random.default_rng(0), BATCH["planted"]
    directions_PD = unit(random.normal(size=(DIRECTIONS, D)))
    offset_D = 3 * random.normal(size=D)
    use_P = 1 / np.arange(1, DIRECTIONS + 1)

    def rows(*stream):
        random = np.random.default_rng(stream)
        # The first ACTIVE arrivals of Poisson processes: drawn in proportion to use, without repetition.
        arrival_BP = random.standard_exponential((batch, DIRECTIONS)) / use_P
        active_BK = np.argpartition(arrival_BP, ACTIVE, axis=1)[:, :ACTIVE]
        code_BP = np.zeros((batch, DIRECTIONS))
        np.put_along_axis(code_BP, active_BK, random.uniform(0.5, 1.5, active_BK.shape), axis=1)
        return offset_D + code_BP @ directions_PD + NOISE * random.normal(size=(batch, D))

    train, held_out = 0, 1
    sample_ND = np.concatenate([rows(train, step) for step in range(64)])
    mean_D = sample_ND.mean(0)
    scale = np.sqrt(sample_ND.var(0).mean())

    def normalize(x_BD):
        return ((x_BD - mean_D) / scale).astype(np.float32)

    return Task(
        "planted",
        lambda: (normalize(rows(train, step)) for step in itertools.count()),
        np.concatenate([normalize(rows(held_out, i)) for i in range(128)]),
        directions_PD,
    )


def miniature(store: str) -> Task:
    """Return the data set of the quickstart's store. Raise InputError if it is missing."""
    if not (pathlib.Path(store) / "manifest.json").exists():
        raise InputError(f"--store is {store!r}, which is not a finished store; run revelio extract --config mini_sd")
    mixture = open_mixture([f"1:{store}"])
    batch = BATCH["miniature"]
    order = loader.make_order(mixture, 0, batch, 256, held_out=0.2, lanes=1)
    mean_D, scale = normalization("center_scale", mixture)

    def batches():
        with contextlib.closing(loader.batches(mixture, order, 0)) as stored_batches:
            for x_BD in stored_batches:
                yield (x_BD - mean_D) / np.float32(scale)

    held_out_ND = np.concatenate(list(loader.held_out_rows(mixture, order, batch)))
    return Task("miniature", batches, (held_out_ND - mean_D) / np.float32(scale))


def unit(W_FD: np.ndarray) -> np.ndarray:
    """Return rows scaled to norm 1."""
    return W_FD / np.maximum(np.linalg.norm(W_FD, axis=1, keepdims=True), 1e-30)


def train_ours(task: Task, learning: Learning) -> Learned:
    """Train this project's SAE as revelio_jax.train does."""
    d = task.held_out_ND.shape[1]
    sae = SaeConfig(k=task.k, latents=LATENTS, k_aux=d // 2, dead_after_rows=learning.dead_after_rows)
    train = TrainConfig(
        steps=learning.steps,
        batch_size=task.batch,
        learning_rate=learning.learning_rate,
        warmup_steps=learning.warm_up,
        decay_share=1 - learning.warm_up / learning.steps,
    )
    mesh = sharding.make_mesh(1, 1, task.batch, LATENTS)
    with contextlib.closing(task.batches()) as batches:
        first_ND = np.concatenate(list(itertools.islice(batches, sae.b_dec_init_rows // task.batch)))
    b_dec_D = initial.bias(sae.b_dec_init, first_ND)
    params = initial.initial_params(sae, learning.seed, LATENTS, b_dec_D, first_ND, mesh)
    state = initial_state(params, np.zeros(d), 1.0, sae, train, mesh)
    train_step = make_train_step(sae, train, mesh)
    with contextlib.closing(task.batches()) as batches:
        for x_BD in itertools.islice(batches, learning.steps):
            state, _ = train_step(state, sharding.put_batch(mesh, x_BD))
    reconstruct = make_reconstruct(dataclasses.replace(sae, dead_threshold=0.0), mesh)
    x_hats, fired_F = [], np.zeros(LATENTS, bool)
    for start in range(0, len(task.held_out_ND), task.batch):
        x_BD = task.held_out_ND[start : start + task.batch]
        x_hat_BD, fired, _ = reconstruct(state, x_BD, np.ones(len(x_BD), bool))
        x_hats.append(np.asarray(x_hat_BD))
        fired_F |= np.asarray(fired) > 0
    return Learned(np.concatenate(x_hats), fired_F, np.asarray(state.params["W_dec_FD"]))


def train_peer(system: str, task: Task, learning: Learning) -> Learned:
    """Train a library in the peers' venv. If its process fails, print its output and exit."""
    script = pathlib.Path(__file__).with_name("train_in_peers.py")
    sizes = (task.held_out_ND.shape[1], LATENTS, task.k, task.batch)
    learning_json = json.dumps(dataclasses.asdict(learning))
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        folder = pathlib.Path(folder)
        np.save(folder / "held_out.npy", task.held_out_ND)
        command = map(str, [PYTHON_OF_PEERS, script, system, *sizes, learning_json, folder])
        # The library may write files into its working directory.
        streams = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log, "cwd": folder}
        with (
            contextlib.suppress(BrokenPipeError),  # the exit status shows the failure
            subprocess.Popen(list(command), **streams) as process,
            contextlib.closing(task.batches()) as batches,
        ):
            for x_BD in itertools.islice(batches, learning.steps):
                process.stdin.write(np.ascontiguousarray(x_BD).data)
        if process.returncode:
            log.seek(0)
            sys.exit(f"{log.read()}\n{system} on {task.name} ended with status {process.returncode}")
        return Learned(*(np.load(folder / f"{name}.npy") for name in ("x_hat", "fired", "W_dec_FD")))


def score(task: Task, learned: Learned) -> dict[str, float | None]:
    x_ND = task.held_out_ND.astype(np.float64)
    fvu = np.square(x_ND - learned.x_hat_ND).sum() / np.square(x_ND - x_ND.mean(0)).sum()
    row = {
        "fvu": float(fvu),
        "dead_fraction": float(1 - learned.fired_F.mean()),
        "mmcs": None,
        "matched": None,
    }
    if task.directions_PD is not None:
        cosine_P = (task.directions_PD @ unit(learned.W_dec_FD).T).max(1)
        row |= {"mmcs": float(cosine_P.mean()), "matched": float((cosine_P > 0.9).mean())}
    return row


def line(row: dict) -> str:
    """Return a row as a line of the table."""
    recovered = "| |" if row["mmcs"] is None else f"| {row['mmcs']:.3f} | {row['matched']:.1%}"
    return (
        f"| {row['data']} | {row['system']} | {row['seed']} | {row['learning_rate']:g} | {row['k']} "
        f"| {row['rows']:,} | {row['fvu']:.5f} | {row['dead_fraction']:.1%} {recovered} |"
    )


def parse_numbers(flag: str, text: str, kind: type, low: float) -> list:
    """Parse a list of numbers of at least ``low``. Raise InputError."""
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = [float("nan")]
    if not all(low <= number < float("inf") for number in numbers):
        raise InputError(f"{flag} is {text!r}; it must be numbers of at least {low:g}")
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", metavar="FILE", help="file to write the rows to")
    parser.add_argument("--data", default=",".join(STEPS), help="data sets (default: %(default)s)")
    parser.add_argument("--systems", default=",".join((OURS, *PEERS)), help="systems to train (default: %(default)s)")
    parser.add_argument("--rates", default="3e-4,1e-3", help="peak learning rates (default: %(default)s)")
    parser.add_argument("--seeds", default="0", help="seeds of the initial weights (default: %(default)s)")
    default_steps = " and ".join(f"{steps} for {name}" for name, steps in STEPS.items())
    parser.add_argument("--steps", type=int, help=f"training steps, at least 20 (default: {default_steps})")
    parser.add_argument("--store", default="stores/mini_sd", help="the miniature's store (default: %(default)s)")
    options = parser.parse_args()
    results.check(options.json)
    if options.steps is not None and options.steps < 20:
        raise InputError(f"--steps is {options.steps}; it must be at least 20")
    names = options.data.split(",")
    for name in names:
        if name not in STEPS:
            raise InputError(f"--data has {name!r}; it must be one of {', '.join(STEPS)}")
    systems = parse_systems(options.systems)
    rates, seeds = parse_numbers("--rates", options.rates, float, 1e-9), parse_numbers("--seeds", options.seeds, int, 0)
    tasks = [planted() if name == "planted" else miniature(options.store) for name in names]

    print("| data | system | seed | learning rate | k | rows | FVU | dead | mean max cosine | matched |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    rows = []
    for task, rate, seed, system in itertools.product(tasks, rates, seeds, systems):
        steps = options.steps or STEPS[task.name]
        learning = Learning(steps, rate, steps // 10, DEAD_AFTER_ROWS, seed)
        learned = train_ours(task, learning) if system == OURS else train_peer(system, task, learning)
        facts = {"data": task.name, "system": system, "seed": seed, "learning_rate": rate}
        rows.append(facts | {"k": task.k, "rows": steps * task.batch, **score(task, learned)})
        print(line(rows[-1]), flush=True)
        results.write(options.json, rows)  # after each, since all together take long


if __name__ == "__main__":
    with report_errors():
        main()
