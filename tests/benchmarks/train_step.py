"""Measure the time of a train step, here and in three other libraries, relative to the encoder product alone.

    bash tests/benchmarks/peers.sh      # once: creates .venv-peers with the other libraries
    python tests/benchmarks/train_step.py --json train_step.json
    python tests/benchmarks/train_step.py --systems revelio_jax --sizes 768x12288x32x2048

No step can be faster than its product x W_enc of 2 B d n operations, the floor. The floor is JAX's for every system. It
is measured between the steps, so that other load on the machine slows both. A step is complete: AuxK, decoder rows of
norm 1, Adam, float32, with the batch on the device. Times are medians of --repeats steps, here on JAX's first device,
for the other libraries on all CPU cores.

Prints a table. With --json also writes its rows: {system, d, n, k, batch, dead_fraction, step_s, floor_s, ratio,
torch_floor_s}. The last is torch's time for the product, null for this project.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import results

from revelio_jax.config import SaeConfig, TrainConfig
from revelio_jax.errors import InputError, report_errors
from revelio_jax.sae import initial, sharding
from revelio_jax.training.step import initial_state, make_train_step

OURS, PEERS = "revelio_jax", ("sae-lens", "eai-sparsify", "dictionary-learning")
SIZES = "768x12288x32x2048,768x3072x32x4096,2048x32768x64x1024"
PYTHON_OF_PEERS = pathlib.Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
WARM_UP = 2  # steps that are not timed; the first one compiles


@dataclasses.dataclass(frozen=True)
class Size:
    """A width, dictionary size, k and batch size."""

    d: int
    n: int
    k: int
    batch: int


def our_step(size: Size, dead_fraction: float) -> Callable[[], float]:
    """Return a function that runs one step and returns its seconds; only this function uses the trainer."""
    sae, train = SaeConfig(k=size.k), TrainConfig(batch_size=size.batch)
    random = np.random.default_rng(0)
    dead = random.permutation(size.n)[: round(dead_fraction * size.n)]
    mesh = sharding.make_mesh(1, 1, size.batch, size.n)
    params = initial.initial_params(sae, 0, size.n, np.zeros(size.d), np.zeros((1, size.d)), mesh)
    # Small encoder rows are never among the k largest, so these latents stay dead.
    params["W_enc_FD"] = params["W_enc_FD"].at[dead].multiply(0.1)
    state = initial_state(params, np.zeros(size.d), 1.0, sae, train, mesh)
    rows_since_fired_F = np.zeros(size.n, np.int32)
    rows_since_fired_F[dead] = sae.dead_after_rows
    train_step = make_train_step(sae, train, mesh)
    x_BD = sharding.put_batch(mesh, random.normal(size=(size.batch, size.d)).astype(np.float32))

    def step():
        nonlocal state
        # The step before has advanced the counters.
        counters_F = jax.device_put(rows_since_fired_F, state.rows_since_fired_F.sharding)
        state = dataclasses.replace(state, rows_since_fired_F=jax.block_until_ready(counters_F))
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(train_step(state, x_BD))
        seconds = time.perf_counter() - start
        assert round(float(metrics["dead_fraction"]) * size.n) == len(dead)
        return seconds

    return step


def product(size: Size) -> Callable[[], float]:
    """Return a function that multiplies a batch with the encoder once and returns the seconds."""
    x_key, W_key = jax.random.split(jax.random.key(0))
    x_BD, W_FD = jax.random.normal(x_key, (size.batch, size.d)), jax.random.normal(W_key, (size.n, size.d))
    multiply = jax.jit(lambda x_BD, W_FD: jnp.matmul(x_BD, W_FD.T))

    def run():
        start = time.perf_counter()
        jax.block_until_ready(multiply(x_BD, W_FD))
        return time.perf_counter() - start

    run()  # compile
    return run


def measure_ours(size: Size, dead_fraction: float, repeats: int) -> dict:
    step, floor = our_step(size, dead_fraction), product(size)
    for _ in range(WARM_UP):
        step()
    seconds = [(floor(), step()) for _ in range(repeats)]
    floor_s, step_s = map(statistics.median, zip(*seconds, strict=True))
    return row(OURS, size, dead_fraction, step_s, floor_s)


def measure_peer(system: str, size: Size, dead_fraction: float, repeats: int) -> dict:
    """Time a library in the peers' venv. If its process fails, print its output and exit."""
    floor, floor_s, times = product(size), [], None
    script = pathlib.Path(__file__).with_name("in_peers.py")
    command = [PYTHON_OF_PEERS, script, system, *dataclasses.astuple(size), dead_fraction, repeats]
    with tempfile.TemporaryFile("w+") as errors:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "text": True}
        with subprocess.Popen(list(map(str, command)), **pipes) as process:
            for text in process.stdout:
                if text == "floor\n":  # the process waits for an answer while the product is timed
                    floor_s.append(floor())
                    print(file=process.stdin, flush=True)
                else:
                    times = json.loads(text)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{errors.read()}\n{system} at {size} ended with status {process.returncode}")
    floor_s = statistics.median(floor_s[-repeats:])
    return row(system, size, dead_fraction, times["step_s"], floor_s, times["torch_floor_s"])


def row(system: str, size: Size, dead_fraction: float, step_s: float, floor_s: float, torch_floor_s=None):
    return {
        "system": system,
        **dataclasses.asdict(size),
        "dead_fraction": dead_fraction,
        "step_s": step_s,
        "floor_s": floor_s,
        "ratio": step_s / floor_s,
        "torch_floor_s": torch_floor_s,
    }


def line(row: dict) -> str:
    """Return a row as a line of the table."""
    torch_floor = "" if row["torch_floor_s"] is None else f"{1000 * row['torch_floor_s']:.1f}"
    return (
        f"| {row['system']} | {row['d']} | {row['n']} | {row['k']} | {row['batch']} "
        f"| {row['dead_fraction']:.1%} | {1000 * row['step_s']:.1f} | {1000 * row['floor_s']:.1f} "
        f"| {row['ratio']:.2f} | {torch_floor} |"
    )


def parse_sizes(text: str) -> list[Size]:
    """Parse --sizes. Raise InputError."""
    sizes = []
    for part in text.split(","):
        values = part.split("x")
        if len(values) != 4 or not all(value.isdecimal() and int(value) for value in values):
            raise InputError(f"--sizes has {part!r}; it must be d x latents x k x batch, for example 768x12288x32x2048")
        size = Size(*map(int, values))
        if size.k > size.n:
            raise InputError(f"--sizes has {part!r}; k must be at most the number of latents")
        sizes.append(size)
    return sizes


def parse_fractions(flag: str, text: str) -> list[float]:
    """Parse a list of dead fractions. Raise InputError."""
    try:
        fractions = [float(part) for part in text.split(",")]
    except ValueError:
        fractions = [-1]
    if not all(0 <= fraction < 1 for fraction in fractions):
        raise InputError(f"{flag} is {text!r}; it must be numbers from 0 to below 1, for example 0,0.05")
    return fractions


def parse_systems(text: str, ours: tuple[str, ...] = (OURS,)) -> list[str]:
    """Parse --systems, which may name ``ours`` and PEERS. Raise InputError if one is unknown or not installed."""
    systems = text.split(",")
    for system in systems:
        if system not in (*ours, *PEERS):
            raise InputError(f"--systems has {system!r}; it must be one of {', '.join((*ours, *PEERS))}")
    if set(systems) & set(PEERS) and not PYTHON_OF_PEERS.exists():
        raise InputError(f"--systems is {text!r}; .venv-peers is missing; run bash tests/benchmarks/peers.sh")
    return systems


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", metavar="FILE", help="file to write the rows to")
    parser.add_argument("--sizes", default=SIZES, help="d x latents x k x batch, one or more (default: %(default)s)")
    parser.add_argument("--systems", default=",".join((OURS, *PEERS)), help="systems to measure (default: %(default)s)")
    parser.add_argument("--repeats", default=7, type=int, help="timed steps of each system (default: %(default)s)")
    parser.add_argument("--dead", default="0,0.05", help="dead fractions, 0 to below 1 (default: %(default)s)")
    parser.add_argument("--dead-peers", default="0", help="the same for the peers (default: %(default)s)")
    options = parser.parse_args()
    results.check(options.json)
    if options.repeats < 1:
        raise InputError(f"--repeats is {options.repeats}; it must be at least 1")
    sizes, systems = parse_sizes(options.sizes), parse_systems(options.systems)
    dead, dead_peers = parse_fractions("--dead", options.dead), parse_fractions("--dead-peers", options.dead_peers)

    print("| system | d | latents | k | batch | dead | step, ms | floor, ms | ratio | torch's floor, ms |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    rows = []
    for size in sizes:
        for system in systems:
            for fraction in dead if system == OURS else dead_peers:
                if system == OURS:
                    rows.append(measure_ours(size, fraction, options.repeats))
                else:
                    rows.append(measure_peer(system, size, fraction, options.repeats))
                print(line(rows[-1]), flush=True)
    results.write(options.json, rows)


if __name__ == "__main__":
    with report_errors():
        main()
