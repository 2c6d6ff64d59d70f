"""Compare the speed of interpretation with reading and encoding alone, and measure its memory.

    python tests/benchmarks/interpretation.py --json interpretation.json
    python tests/benchmarks/interpretation.py --json interpretation.json --sizes 128x512x20 --rounds 9
    python tests/benchmarks/interpretation.py --json estimate.json --sizes "" --state 65536x64

Every size, width x latents x k, gets a store of random rows and a random top-k SAE. Modes, in rows per second:

    loader      the training loader alone, as in tests/benchmarks/input_path.py
    reading     reading chunks in store order, as interpretation does
    encoding    reading and encoding; the codes are dropped
    interpret   reading, encoding and collecting the results of every latent
    collecting  collecting codes that are ready: what the host does while the device computes

The modes take turns for --rounds rounds. ``ratio`` is the median over rounds of the rate over the loader's rate;
``of_encoding`` is the same over the rate of encoding. On a CPU encoding is the floor: its product of 2 x width x
latents operations per row takes far longer than the rest. ``state`` is the size of the collected results in bytes.

--state LATENTSxK allocates the results of that many latents, with five timesteps and maps of 256 cells, feeds them
batches of random codes, and estimates memory and host time of a pass over 100 million rows. The store has just been
written, so it is read from the page cache if it fits there.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import resource
import statistics
import tempfile
import time
from collections.abc import Callable

import input_path
import numpy as np
import results
from safetensors.numpy import save_file

from revelio_jax.config import Config, ExtractConfig, InterpretConfig
from revelio_jax.errors import InputError, report_errors
from revelio_jax.interpret.latents import layout, store_pass, stream
from revelio_jax.interpret.latents.accumulator import LatentAccumulator
from revelio_jax.interpret.latents.layout import PositionMap, Strata
from revelio_jax.interpret.latents.neighbors import CoactivationRows
from revelio_jax.sae_folder.card import cfg_json
from revelio_jax.training import loader
from revelio_jax.training.mixture import open_mixture

SIZES = "128x512x20,768x12288x32"
SECONDS = 4  # approximate time of the slowest mode; sets the size of the store
FLOPS = 5e10  # per second on the slowest machine, to estimate that time
MOST_ROWS = 1 << 20
ROWS = 100_000_000  # rows of the estimated pass


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", required=True, metavar="FILE", help="file to write the rows to")
    parser.add_argument("--sizes", default=SIZES, help="width x latents x k, one or more (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each mode (default: %(default)s)")
    parser.add_argument("--rows", type=int, help="rows of a store (default: depends on the size)")
    parser.add_argument("--state", default="", help="latents x k to estimate, for example 65536x64 (default: none)")
    parser.add_argument(
        "--state-batches", type=int, default=400, help="batches of 3,840 rows for the estimate (default: %(default)s)"
    )
    options = parser.parse_args()
    results.check(options.json)
    if options.rounds < 1:
        raise InputError(f"--rounds is {options.rounds}; it must be at least 1")
    sizes, states = parse_sizes("--sizes", options.sizes, 3), parse_sizes("--state", options.state, 2)
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(pathlib.Path(folder), *size, options.rows, options.rounds)
        for row in rows[-5:]:
            of_encoding = f"  {row['of_encoding']:6.2f} of encoding" if "of_encoding" in row else ""
            print(
                f"{row['d']} x {row['latents']}, k {row['k']}  {row['mode']:10} {row['rows_per_s']:12,.0f} "
                f"rows/s  {row['ratio']:6.2f} of the loader{of_encoding}",
                flush=True,
            )
    estimates = [estimate(*size, options.state_batches) for size in states]
    results.write(options.json, {"rows": rows, "statements": estimates})


def parse_sizes(flag: str, text: str, numbers: int) -> list[tuple[int, ...]]:
    """Parse sizes such as 128x512x20, separated by commas. Raise InputError."""
    sizes = []
    for part in filter(None, text.split(",")):
        try:
            size = tuple(int(n) for n in part.split("x"))
        except ValueError:
            size = ()
        if len(size) != numbers or min(size) < 1:
            raise InputError(f"{flag} has {part!r}; it must be {numbers} whole numbers joined by x")
        sizes.append(size)
    return sizes


def measure(folder: pathlib.Path, d: int, latents: int, k: int, rows: int | None, rounds: int) -> list[dict]:
    """Return the rows of all modes of one size."""
    rows = rows or min(MOST_ROWS, int(SECONDS * FLOPS / (2 * d * latents)))
    shards = -(-rows // input_path.SHARD_ROWS)
    gigabytes = shards * input_path.SHARD_ROWS * d * 4e-9
    input_path.write(str(folder / "store"), gigabytes, d, "float32")
    write_sae(folder / "run" / "export", d, latents, k)
    config = Config(
        extract=ExtractConfig(store=str(folder / "store")),
        run=str(folder / "run"),
        interpret=InterpretConfig(),
    )
    store, site, sae = store_pass.open_inputs(config)
    positions, timesteps = layout.positions_and_timesteps(site)
    strata = layout.make_strata(None, store.table(), timesteps)
    position_map = layout.make_map(site.name, store, positions, config.interpret.cells)
    mixture = open_mixture([f"1:{folder / 'store'}"])
    # The loader's usual buffers, unless the store is smaller.
    input_path.BUFFER_CHUNKS = min(input_path.BUFFER_CHUNKS, len(site.chunks) // 2)
    order = loader.make_order(mixture, 0, input_path.BATCH, input_path.BUFFER_CHUNKS, 0.0, 1)
    parts = list(itertools.islice(stream.whole_samples(store_pass.encoded_rows(config, site, sae)), 32))
    state = []

    def encode():
        for _ in store_pass.encoded_rows(config, site, sae):
            pass

    def interpret_all():
        collection, _ = store_pass.accumulate(config, store, site, sae, strata, position_map)
        state[:] = [collection.nbytes]

    def read():
        for _ in stream.batches(site, config.interpret.batch_size):
            pass

    modes: dict[str, Callable[[], float]] = {
        "loader": lambda: input_path.read_batches(mixture, order),
        "reading": lambda: rate(read, site.rows),
        "encoding": lambda: rate(encode, site.rows),
        "interpret": lambda: rate(interpret_all, site.rows),
        "collecting": lambda: collecting(latents, strata, position_map, parts),
    }
    rates: dict[str, list[float]] = {name: [] for name in modes}
    for _ in range(rounds):
        for name, measure in modes.items():
            rates[name].append(measure())
    results_of_modes = []
    for name in modes:
        row = {"mode": name, "d": d, "latents": latents, "k": k, "rows": site.rows}
        row |= {"rows_per_s": statistics.median(rates[name]), "ratio": paired(rates[name], rates["loader"])}
        if name == "interpret":
            row |= {"of_encoding": paired(rates[name], rates["encoding"]), "state": state[0]}
        results_of_modes.append(row | {"all": rates[name]})
    return results_of_modes


def paired(rates: list[float], others: list[float]) -> float:
    """Return the median of the ratios of two lists of rates."""
    return statistics.median(rate / other for rate, other in zip(rates, others, strict=True))


def rate(run: Callable[[], None], rows: int) -> float:
    """Return the rows per second of a run over ``rows`` rows."""
    started = time.perf_counter()
    run()
    return rows / (time.perf_counter() - started)


def collecting(
    latents: int, strata: Strata, position_map: PositionMap, parts: list[stream.CodeBatch], repeats: int = 4
) -> float:
    """Return the rows per second of the host; the parts are repeated with later sample numbers."""
    count = sum(len(part.sample_N) for part in parts)
    later = int(parts[-1].sample_N[-1]) + 1
    collection = LatentAccumulator(latents, 20, 10, 1.0, position_map, strata, np.arange(256))
    sampled = CoactivationRows(262_144, repeats * count)
    started = time.perf_counter()
    for repeat in range(repeats):
        for part in parts:
            part = dataclasses.replace(part, sample_N=part.sample_N + np.int32(repeat * later))
            collection.add(part)
            sampled.add(part)
    return repeats * count / (time.perf_counter() - started)


def write_sae(folder: pathlib.Path, d: int, latents: int, k: int) -> None:
    """Write the folder of a random SAE."""
    W_dec = np.random.default_rng(0).standard_normal((latents, d), np.float32)
    W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
    folder.mkdir(parents=True)
    tensors = {"W_enc": W_dec.T.copy(), "W_dec": W_dec}
    tensors |= {"b_enc": np.zeros(latents, np.float32), "b_dec": np.zeros(d, np.float32)}
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(cfg_json("topk", d, latents, k, {})))


def estimate(latents: int, k: int, batches: int) -> dict:
    """Return the memory of the results and the host's time for 100 million rows, from batches of random codes."""
    strata, positions, timesteps = 5, 256, np.arange(5, dtype=np.int32)
    position_map = PositionMap((16, 16), (16, 16), np.arange(positions, dtype=np.int32))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    by_timestep = Strata("timestep", tuple(map(str, timesteps)), timesteps=timesteps)
    collection = LatentAccumulator(latents, 20, 10, 1.0, position_map, by_timestep, np.arange(256))
    rows = strata * positions * 3  # three samples per batch, 3,840 rows
    sampled = CoactivationRows(262_144, batches * rows)
    random = np.random.default_rng(0)
    seconds = []
    for batch in range(batches):
        part = random_part(random, batch, rows, positions, strata, latents, k)
        started = time.perf_counter()
        collection.add(part)
        sampled.add(part)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    last = statistics.median(seconds[-len(seconds) // 4 :]) / rows
    row = {
        "latents": latents,
        "k": k,
        "state_gib": collection.nbytes / 2**30,
        "peak_gib": peak / 2**20,  # KiB on Linux
        "host_us_per_row": 1e6 * last,
        "host_hours": ROWS * last / 3600,
    }
    print(
        f"{latents:,} latents, k {k}: state {row['state_gib']:.2f} GiB, peak "
        f"{row['peak_gib']:.2f} GiB; the host takes {row['host_us_per_row']:.2f} us per row at the end, "
        f"{60 * row['host_hours']:.0f} minutes for {ROWS:,} rows"
    )
    return row


def random_part(random, batch, rows, positions, strata, latents, k):
    """Return random codes. Half of a row's latents are those of its sample, and some latents are far more frequent."""
    samples = rows // (positions * strata)
    latent = (latents * np.square(random.random((rows, k)))).astype(np.int32)
    shared = (latents * np.square(random.random((samples, k // 2)))).astype(np.int32)
    latent[:, : k // 2] = np.repeat(shared, positions * strata, axis=0)
    return stream.CodeBatch(
        np.repeat(np.arange(batch * samples, (batch + 1) * samples, dtype=np.int32), positions * strata),
        np.tile(np.arange(positions, dtype=np.int32), strata * samples),
        np.tile(np.repeat(np.arange(strata, dtype=np.int32), positions), samples),
        np.full(rows, k, np.int32),
        latent.reshape(-1),
        random.exponential(size=rows * k).astype(np.float32) + np.float32(1e-3),
    )


if __name__ == "__main__":
    with report_errors():
        main()
