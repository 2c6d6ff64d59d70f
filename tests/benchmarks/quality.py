"""Compare what this project and three other libraries learn from the same rows in the same order.

    bash tests/benchmarks/peers.sh      # once: creates .venv-peers with the other libraries
    revelio extract --config mini_sd    # once for each of mini_sd, mini_flux and minilm: creates its store
    python tests/benchmarks/quality.py --json quality.json
    python tests/benchmarks/quality.py --json quality.json --data uniform-512 --systems revelio_jax --steps 200

Data sets:

    uniform-N, zipf-N           rows of width 64, each a sum of 8 of 256 known unit directions, plus noise and a large
                                offset, for N latents. Direction i is drawn in proportion to 1 or to i^-1.5.
    mini_sd, mini_flux, minilm  the activations of the shipped config, with its dictionary size, k, batch and steps

Systems are the libraries, and this project with bfloat16 products (revelio_jax-bfloat16), and first moments
(revelio_jax-bfloat16-moments).

A seed determines the data and the initial weights. Seeds are drawn at random, so that no default is tuned to one.

All systems get the same batches, centered and scaled in the same way, and the same dictionary size, k, peak learning
rate of Adam, warm-up over a tenth of the steps, decay to 0 over the rest, and number of rows after which a latent
counts as dead. With --steps, the config's number for a store changes in proportion to the steps. AuxK is on; everything
else is the system's own default. One evaluator scores each system's own reconstructions of held-out rows.

Prints a line for each trained SAE, then a table with the mean over seeds and its 95 % interval by Student's t. The
table shows which of three targets the project meets: FVU no higher than the best library's, dead latents at most 3 %,
and the highest share of matched directions.

With --json also writes the rows: {data, latents, system, seed, learning_rate, k, rows, fvu, dead_fraction, mmcs,
matched}. If the file exists, its seeds are used again and its rows are not trained again; delete it when the code
changes. ``rows`` is the number of training rows. ``dead_fraction`` is the share of latents that are 0 on all held-out
rows. For planted directions, ``mmcs`` is the mean of the largest cosine with a decoder row, and ``matched`` the share
of directions with a cosine above 0.9; both are null for stores.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
import secrets
import subprocess
import sys
import tempfile
import typing

import numpy as np
import quality_table
import results
from learning import Learning
from quality_data import NAMES, Task, check, make_task, unit
from train_step import OURS, PEERS, PYTHON_OF_PEERS, parse_systems

from revelio_jax.config import SaeConfig, TrainConfig
from revelio_jax.errors import InputError, report_errors
from revelio_jax.evaluation.quality import make_reconstruct
from revelio_jax.sae import initial, sharding
from revelio_jax.training.step import initial_state, make_train_step

MAX_SEED = 2**31


class Learned(typing.NamedTuple):
    """A trained SAE: reconstructions of the held-out rows, latents that fire on any of them, decoder rows."""

    x_hat_ND: np.ndarray
    fired_F: np.ndarray
    W_dec_FD: np.ndarray


# Fields of config.sae and config.train by system: this project as it is on a CPU, and as on accelerators.
VARIANTS = {
    OURS: ({}, {}),
    f"{OURS}-bfloat16": ({"matmul_dtype": "bfloat16"}, {}),
    f"{OURS}-bfloat16-moments": ({"matmul_dtype": "bfloat16"}, {"first_moment_dtype": "bfloat16"}),
}


def train_ours(task: Task, learning: Learning, system: str = OURS) -> Learned:
    """Train this project's SAE as revelio_jax.train does, with the fields of VARIANTS."""
    d, (sae_fields, train_fields) = task.held_out_ND.shape[1], VARIANTS[system]
    sae = SaeConfig(k=task.k, latents=task.latents, k_aux=d // 2, dead_after_rows=learning.dead_after_rows)
    sae = dataclasses.replace(sae, **sae_fields)
    train = TrainConfig(
        **train_fields,
        steps=learning.steps,
        batch_size=task.batch,
        learning_rate=learning.learning_rate,
        warmup_steps=learning.warm_up,
        decay_share=1 - learning.warm_up / learning.steps,
    )
    mesh = sharding.make_mesh(1, 1, task.batch, task.latents)
    with contextlib.closing(task.batches()) as batches:
        first_ND = np.concatenate(list(itertools.islice(batches, sae.b_dec_init_rows // task.batch)))
    b_dec_D = initial.bias(sae.b_dec_init, first_ND)
    params = initial.initial_params(sae, learning.seed, task.latents, b_dec_D, first_ND, mesh)
    state = initial_state(params, np.zeros(d), 1.0, sae, train, mesh)
    train_step = make_train_step(sae, train, mesh)
    with contextlib.closing(task.batches()) as batches:
        for x_BD in itertools.islice(batches, learning.steps):
            state, _ = train_step(state, sharding.put_batch(mesh, x_BD))
    reconstruct = make_reconstruct(dataclasses.replace(sae, dead_threshold=0.0), 1, mesh)
    x_hats, fired_F = [], np.zeros(task.latents, bool)
    for start in range(0, len(task.held_out_ND), task.batch):
        x_BD = task.held_out_ND[start : start + task.batch]
        x_hat_BD, fired_GF, _ = reconstruct(state, x_BD, np.zeros((len(x_BD), 1), np.int32))
        x_hats.append(np.asarray(x_hat_BD))
        fired_F |= np.asarray(fired_GF[0]) > 0
    return Learned(np.concatenate(x_hats), fired_F, np.asarray(state.params["W_dec_FD"]))


def train_peer(system: str, task: Task, learning: Learning) -> Learned:
    """Train a library in the peers' venv. If its process fails, print its output and exit."""
    script = pathlib.Path(__file__).with_name("train_in_peers.py")
    sizes = (task.held_out_ND.shape[1], task.latents, task.k, task.batch)
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


def parse_numbers(flag: str, text: str, kind: type, low: float) -> list:
    """Parse a list of numbers of at least ``low``. Raise InputError."""
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = [float("nan")]
    if not all(low <= number < float("inf") for number in numbers):
        raise InputError(f"{flag} is {text!r}; it must be numbers of at least {low:g}")
    return numbers


def choose_seeds(text: str | None, draw: int, rows: list[dict]) -> list[int]:
    """Return the seeds that --seeds lists, or ``draw`` seeds: those of finished rows first, then random ones."""
    if text is not None:
        return parse_numbers("--seeds", text, int, 0)
    seeds = list(dict.fromkeys(row["seed"] for row in rows))[:draw]
    return seeds + [secrets.randbelow(MAX_SEED) for _ in range(draw - len(seeds))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", metavar="FILE", help="file to write the rows to; finished rows are not trained again")
    parser.add_argument("--data", default=",".join(NAMES), help="data sets (default: %(default)s)")
    parser.add_argument("--systems", default=",".join((OURS, *PEERS)), help="systems to train (default: %(default)s)")
    parser.add_argument("--rates", default="3e-4,1e-3,3e-3", help="peak learning rates (default: %(default)s)")
    parser.add_argument("--draw", type=int, default=3, help="number of random seeds (default: %(default)s)")
    parser.add_argument("--seeds", help="seeds to use instead of random ones")
    parser.add_argument("--steps", type=int, help="training steps, at least 20 (default: 4000, or those of the config)")
    parser.add_argument("--stores", default="stores", help="folder of the stores (default: %(default)s)")
    options = parser.parse_args()
    results.check(options.json)
    if options.steps is not None and options.steps < 20:
        raise InputError(f"--steps is {options.steps}; it must be at least 20")
    if options.draw < 1:
        raise InputError(f"--draw is {options.draw}; it must be at least 1")
    names = options.data.split(",")
    check(names, options.stores)
    systems = parse_systems(options.systems, tuple(VARIANTS))
    rates = parse_numbers("--rates", options.rates, float, 1e-9)
    rows = quality_table.read(options.json)
    seeds = choose_seeds(options.seeds, options.draw, rows)
    rows_of = {(*quality_table.cell(row), row["seed"]): row for row in rows}
    chosen = []

    print(quality_table.HEADER, flush=True)
    load = functools.lru_cache(1)(functools.partial(make_task, stores=options.stores, steps=options.steps))
    # All cells of the first seed come first, because all together take long.
    for seed, name, rate, system in itertools.product(seeds, names, rates, systems):
        task = load(name, seed)
        facts = {"data": name, "latents": task.latents, "system": system, "seed": seed, "learning_rate": rate}
        facts |= {"k": task.k, "rows": task.steps * task.batch}
        key = (*quality_table.cell(facts), seed)
        if key not in rows_of:
            learning = Learning(task.steps, rate, task.steps // 10, task.dead_after_rows, seed)
            learned = train_ours(task, learning, system) if system in VARIANTS else train_peer(system, task, learning)
            rows_of[key] = facts | score(task, learned)
            results.write(options.json, list(rows_of.values()))
        chosen.append(rows_of[key])
        print(quality_table.line(chosen[-1]), flush=True)
    print("\n" + quality_table.summary(chosen, OURS))


if __name__ == "__main__":
    with report_errors():
        main()
