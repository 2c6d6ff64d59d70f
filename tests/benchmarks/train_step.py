"""How long a training step takes, here and in three other libraries, over the encoder product alone.

    bash tests/benchmarks/peers.sh      # once; makes .venv-peers with the other libraries
    python tests/benchmarks/train_step.py --json train_step.json
    python tests/benchmarks/train_step.py --systems revelio_jax --sizes 768x12288x32x2048

No step can be faster than its product x W_enc of 2 B d n operations, the floor. It is JAX's, for every
system, and is measured between any two steps, so that what else the machine does slows both. A step is
the whole of it: AuxK on, decoder rows of norm 1, Adam, float32, a batch that is on the device. Medians of
``--repeats`` steps, here on the first device of JAX, elsewhere on the CPU with all its cores.
Prints a table, and with ``--json`` writes its rows: {system, d, n, k, batch, dead_fraction, step_s,
floor_s, ratio, torch_floor_s}. The last is torch's time for the same product, null for this project.
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
from revelio_jax.errors import InputError, reported
from revelio_jax.sae import initial, sharding
from revelio_jax.training.step import initial_state, make_train_step

OURS, PEERS = "revelio_jax", ("sae-lens", "eai-sparsify", "dictionary-learning")
SIZES = "768x12288x32x2048,768x3072x32x4096,2048x32768x64x1024"
PYTHON_OF_PEERS = pathlib.Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
WARM_UP = 2  # steps before the clock runs: the first compiles


@dataclasses.dataclass(frozen=True)
class Size:
    d: int
    n: int
    k: int
    batch: int


def our_step(size: Size, dead_fraction: float) -> Callable[[], float]:
    """A function that takes one step and returns its seconds.

    All that this benchmark asks of the trainer is here.
    """
    sae, train = SaeConfig(k=size.k), TrainConfig(batch_size=size.batch)
    random = np.random.default_rng(0)
    dead = random.permutation(size.n)[: round(dead_fraction * size.n)]
    mesh = sharding.make_mesh(1, 1, size.batch, size.n)
    params = initial.initial_params(sae, 0, size.n, np.zeros(size.d), np.zeros((1, size.d)), mesh)
    # So that they are never among the k largest.
    params["W_enc_FD"] = params["W_enc_FD"].at[dead].multiply(0.1)
    state = initial_state(params, np.zeros(size.d), 1.0, sae, train, mesh)
    rows_since_fired_F = np.zeros(size.n, np.int32)
    rows_since_fired_F[dead] = sae.dead_after_rows
    train_step = make_train_step(sae, train, mesh)
    x_BD = sharding.put_batch(mesh, random.normal(size=(size.batch, size.d)).astype(np.float32))

    def step():
        nonlocal state
        # Again before every step, since the one before has counted.
        since_F = jax.device_put(rows_since_fired_F, state.rows_since_fired_F.sharding)
        state = dataclasses.replace(state, rows_since_fired_F=jax.block_until_ready(since_F))
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(train_step(state, x_BD))
        seconds = time.perf_counter() - start
        assert round(float(metrics["dead_fraction"]) * size.n) == len(dead)
        return seconds

    return step


def product(size: Size) -> Callable[[], float]:
    """A function that multiplies a batch with the encoder once and returns the seconds."""
    of_x, of_W = jax.random.split(jax.random.key(0))
    x_BD, W_FD = jax.random.normal(of_x, (size.batch, size.d)), jax.random.normal(of_W, (size.n, size.d))
    multiply = jax.jit(lambda x_BD, W_FD: jnp.matmul(x_BD, W_FD.T))

    def run():
        start = time.perf_counter()
        jax.block_until_ready(multiply(x_BD, W_FD))
        return time.perf_counter() - start

    run()  # compiles
    return run


def measure_ours(size: Size, dead_fraction: float, repeats: int) -> dict:
    step, floor = our_step(size, dead_fraction), product(size)
    for _ in range(WARM_UP):
        step()
    seconds = [(floor(), step()) for _ in range(repeats)]
    floor_s, step_s = map(statistics.median, zip(*seconds, strict=True))
    return row(OURS, size, dead_fraction, step_s, floor_s)


def measure_peer(system: str, size: Size, dead_fraction: float, repeats: int) -> dict:
    """Ends this process with what the library's process wrote, where that fails."""
    floor, floor_s, measured = product(size), [], None
    script = pathlib.Path(__file__).with_name("in_peers.py")
    command = [PYTHON_OF_PEERS, script, system, *dataclasses.astuple(size), dead_fraction, repeats]
    with tempfile.TemporaryFile("w+") as errors:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "text": True}
        with subprocess.Popen(list(map(str, command)), **pipes) as process:
            for said in process.stdout:
                if said == "floor\n":  # it stands still until it has an answer
                    floor_s.append(floor())
                    print(file=process.stdin, flush=True)
                else:
                    measured = json.loads(said)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{errors.read()}\n{system} at {size} ended with status {process.returncode}")
    floor_s = statistics.median(floor_s[-repeats:])
    return row(system, size, dead_fraction, measured["step_s"], floor_s, measured["torch_floor_s"])


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
    """A row of the table."""
    torch_floor = "" if row["torch_floor_s"] is None else f"{1000 * row['torch_floor_s']:.1f}"
    return (
        f"| {row['system']} | {row['d']} | {row['n']} | {row['k']} | {row['batch']} "
        f"| {row['dead_fraction']:.1%} | {1000 * row['step_s']:.1f} | {1000 * row['floor_s']:.1f} "
        f"| {row['ratio']:.2f} | {torch_floor} |"
    )


def sizes(text: str) -> list[Size]:
    found = []
    for part in text.split(","):
        values = part.split("x")
        if len(values) != 4 or not all(value.isdecimal() and int(value) for value in values):
            raise InputError(f"--sizes has {part!r}; a size is d x latents x k x batch, as 768x12288x32x2048")
        size = Size(*map(int, values))
        if size.k > size.n:
            raise InputError(f"--sizes has {part!r}; k must be at most the latents")
        found.append(size)
    return found


def fractions(flag: str, text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [-1]
    if not all(0 <= fraction < 1 for fraction in found):
        raise InputError(f"{flag} is {text!r}; it must be numbers from 0 to below 1, as 0,0.05")
    return found


def systems(text: str) -> list[str]:
    found = text.split(",")
    for system in found:
        if system not in (OURS, *PEERS):
            raise InputError(f"--systems has {system!r}; allowed: {', '.join((OURS, *PEERS))}")
    if set(found) & set(PEERS) and not PYTHON_OF_PEERS.exists():
        raise InputError(f"--systems is {text!r}; .venv-peers is missing: bash tests/benchmarks/peers.sh")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", default="", metavar="FILE", help="where the rows are written")
    parser.add_argument("--sizes", default=SIZES, help=f"d x latents x k x batch, several; default {SIZES}")
    parser.add_argument("--systems", default=",".join((OURS, *PEERS)), help="what is measured; default all")
    parser.add_argument("--repeats", default=7, type=int, help="timed steps of each; default 7")
    parser.add_argument("--dead", default="0,0.05", help="dead fractions for this project; default 0,0.05")
    parser.add_argument("--dead-peers", default="0", help="dead fractions for the others; default 0")
    given = parser.parse_args()
    path = results.checked(given.json)
    if given.repeats < 1:
        raise InputError(f"--repeats is {given.repeats}; it must be at least 1")
    measured_sizes, measured_systems = sizes(given.sizes), systems(given.systems)
    dead, dead_peers = fractions("--dead", given.dead), fractions("--dead-peers", given.dead_peers)

    print("| system | d | latents | k | batch | dead | step, ms | floor, ms | ratio | torch's floor, ms |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    measured = []
    for size in measured_sizes:
        for system in measured_systems:
            for fraction in dead if system == OURS else dead_peers:
                if system == OURS:
                    measured.append(measure_ours(size, fraction, given.repeats))
                else:
                    measured.append(measure_peer(system, size, fraction, given.repeats))
                print(line(measured[-1]), flush=True)
    results.write(path, measured)


if __name__ == "__main__":
    with reported():
        main()
