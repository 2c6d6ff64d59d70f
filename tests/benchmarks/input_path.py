"""Measure how many rows per second each part of the input path gives, and how long a train step waits for rows.

    python tests/benchmarks/input_path.py --json input_path.json
    python tests/benchmarks/input_path.py --json input_path.json --gb 8 --dtype bfloat16 --steps-per-dispatch 8

The store is created for the measurement and has just been written, so it is read from the page cache if it fits there.

| mode | measured |
|---|---|
| chunks | read all chunks in file order with the loader's threads, and drop them |
| loader | batches from the loader, on the host |
| transfer | one batch from host memory to the devices |
| host feed | batches from the loader on the devices, as a run without resident rows gets them |
| places | the places of resident rows, on the host |
| resident feed | batches gathered from resident rows, as a run with resident rows gets them |

Modes take turns for --rounds rounds. A row has the median rate in rows and in 10^6 bytes of stored rows per second, and
all rates. ``of_chunks`` is the median over rounds of the rate divided by the rate of ``chunks`` in the same round.
Loading resident rows is measured once, as the mode ``load``. The modes ``train host`` and ``train resident`` are short
training runs. They also have ``wait_share``, the time that steps wait for rows divided by the time of steps. Their
first 2 lines of metrics, which include compilation, do not count.

Prints a table. With --json also writes {options, device, rows: [{mode, rows_per_s, mb_per_s, all,
of_chunks, wait_share}]}.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable

import jax
import numpy as np
import results

from revelio_jax.config import (
    Config,
    DataConfig,
    ExtractConfig,
    LoggingConfig,
    MeshConfig,
    SaeConfig,
    TrainConfig,
)
from revelio_jax.errors import InputError, report_errors
from revelio_jax.sae import sharding
from revelio_jax.store import SitePlan, StorePlan, StoreWriter
from revelio_jax.train import train
from revelio_jax.training import dispatch, feeds, loader, resident, shuffled_rows
from revelio_jax.training.loader import RowStream
from revelio_jax.training.mixture import Mixture, open_mixture

BATCH, BUFFER_CHUNKS, CHUNK_ROWS, SHARD_ROWS, SAMPLE_ROWS = 4096, 256, 256, 32_768, 64


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="file to write the rows to")
    parser.add_argument("--gb", type=float, default=2, help="size of the store in 10^9 bytes (default: %(default)s)")
    parser.add_argument("--d", type=int, default=768, help="width of a row (default: %(default)s)")
    dtypes = ("float32", "float16", "bfloat16")
    parser.add_argument("--dtype", default="float32", choices=dtypes, help="dtype of the store (default: %(default)s)")
    parser.add_argument("--lanes", type=int, default=1, help="value of config.data.lanes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each mode (default: %(default)s)")
    parser.add_argument("--latents", type=int, default=3072, help="dictionary size of training (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="steps of training, 0: none (default: %(default)s)")
    parser.add_argument("--steps-per-dispatch", type=int, help="the same of the config (default: the config's choice)")
    parser.add_argument("--folder", help="folder to create the store in (default: a temporary folder)")
    options = parser.parse_args()
    results.check(options.json)
    if options.rounds < 1:
        raise InputError(f"--rounds is {options.rounds}; it must be at least 1")
    if options.steps % 10 or 0 < options.steps < 30:
        raise InputError(f"--steps is {options.steps}; it must be 0, or a multiple of 10 and at least 30")
    print("| mode | rows/s | MB/s | of chunks | share of time that a step waits |")
    print("| --- | ---: | ---: | ---: | ---: |", flush=True)
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for row in measure(folder, options):
            rows.append(row)
            wait = "" if row["wait_share"] is None else f"{row['wait_share']:.1%}"
            share = "" if row["of_chunks"] is None else f"{row['of_chunks']:.2f}"
            rates = f"{row['rows_per_s']:,.0f} | {row['mb_per_s']:,.0f}"
            print(f"| {row['mode']} | {rates} | {share} | {wait} |", flush=True)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    results.write(options.json, {"options": vars(options), "device": device, "rows": rows})


def measure(folder: str, options: argparse.Namespace) -> Iterable[dict]:
    """Yield the rows of all modes."""
    row_bytes = options.d * (4 if options.dtype == "float32" else 2)

    def row(mode: str, rates: list[float], wait_share: float | None = None, of_chunks: float | None = None) -> dict:
        rate = statistics.median(rates)
        return {
            "mode": mode,
            "rows_per_s": rate,
            "mb_per_s": 1e-6 * row_bytes * rate,
            "all": rates,
            "of_chunks": of_chunks,
            "wait_share": wait_share,
        }

    config = Config(
        extract=ExtractConfig(store=f"{folder}/store"),
        data=DataConfig(held_out=0.0, buffer_chunks=BUFFER_CHUNKS, lanes=options.lanes),
        sae=SaeConfig(latents=options.latents),
        train=TrainConfig(
            batch_size=BATCH, steps=options.steps, checkpoint_every=10**6, steps_per_dispatch=options.steps_per_dispatch
        ),
        mesh=MeshConfig(),
        logging=LoggingConfig(every=10),
    )
    write(f"{folder}/store", options.gb, options.d, options.dtype)
    mixture = open_mixture([f"1:{folder}/store"])
    stream = RowStream(mixture, loader.make_order(mixture, 0, BATCH, BUFFER_CHUNKS, 0.0, options.lanes))
    mesh = sharding.make_mesh(1, None, BATCH, options.latents)
    count = dispatch.size(config.train, options.d * options.latents, mesh)
    lanes = range(options.lanes)
    x_BD = next(read := loader.batches(*stream, 0))
    read.close()

    start = time.perf_counter()
    (resident_feed,) = feeds.open_feeds("yes", [stream], lanes, count, mesh)
    yield row("load", [stream.order.rows / (time.perf_counter() - start)])
    (host_feed,) = feeds.open_feeds("no", [stream], lanes, count, mesh)
    layout = resident.make_layout(stream.order, mesh.size)
    modes: dict[str, Callable[[], float]] = {
        "chunks": lambda: read_chunks(mixture),
        "loader": lambda: read_batches(mixture, stream.order),
        "transfer": lambda: rate(sharding.put_batch(mesh, x_BD) for _ in itertools.count()),
        "host feed": lambda: read_feed(host_feed, count),
        "places": lambda: rate(resident.places(stream.order, layout, 0, lanes)),
        "resident feed": lambda: read_feed(resident_feed, count),
    }
    rates: dict[str, list[float]] = {name: [] for name in modes}
    for _ in range(options.rounds):
        for name, run in modes.items():
            rates[name].append(run())
    for name, values in rates.items():
        shares = [rate / chunks for rate, chunks in zip(values, rates["chunks"], strict=True)]
        yield row(name, values, of_chunks=statistics.median(shares))
    for choice, name in (("no", "train host"), ("yes", "train resident")) if options.steps else ():
        data = dataclasses.replace(config.data, resident=choice)
        lines = run_training(dataclasses.replace(config, run=f"{folder}/{name}", data=data))
        wait_share = sum(line["data_wait_s"] for line in lines) / sum(line["step_s"] for line in lines)
        yield row(name, [line["rows_per_s"] for line in lines], wait_share)


def write(folder: str, gb: float, d: int, dtype: str) -> None:
    """Write a store of random rows, of about ``gb`` x 10^9 bytes."""
    item = 4 if dtype == "float32" else 2
    shards = max(1, round(gb * 1e9 / (SHARD_ROWS * d * item)))
    samples = SHARD_ROWS // SAMPLE_ROWS
    site = SitePlan("site", d, (SHARD_ROWS,) * shards)
    plan = StorePlan((site,), dtype, CHUNK_ROWS, samples, shards * samples, {"created_by": "benchmark"})
    writer = StoreWriter(folder, plan, [{"id": i} for i in range(plan.samples)])
    values = np.random.default_rng(0).standard_normal((SHARD_ROWS, d), np.float32)
    row = np.arange(SHARD_ROWS, dtype=np.int32)
    for shard in range(shards):
        index = {"sample": shard * samples + row // SAMPLE_ROWS, "position": row % SAMPLE_ROWS}
        writer.write_shard(shard, {"site": {"activations": values, **index, "timestep": 0 * row}})
    writer.finish()


def read_chunks(mixture: Mixture) -> float:
    """Read all chunks; return the rows per second."""
    (site,) = mixture.sites
    array = site.arrays["activations"]

    def read(chunk):
        array[slice(*chunk)].read().result()

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(shuffled_rows.READERS) as readers:
        for _ in readers.map(read, site.chunks):
            pass
    return site.rows / (time.perf_counter() - start)


def read_batches(mixture: Mixture, order: loader.Order) -> float:
    """Read about an epoch with the loader, in batches of BATCH rows; return the rows per second.

    A warm-up of three groups of chunks makes up for the groups that are still being read ahead at the end, and for
    memory that is used for the first time.
    """
    with contextlib.closing(loader.batches(mixture, order, 0)) as stream:
        return rate(stream, 3 * BUFFER_CHUNKS * CHUNK_ROWS // BATCH, order.rows // BATCH)


def read_feed(feed: feeds.Feed, count: int, batches: int = 64) -> float:
    """Take ``batches`` batches from a feed in dispatches of ``count`` steps; return the rows per second."""
    warm_up = -(-BUFFER_CHUNKS * CHUNK_ROWS // BATCH // count)
    with contextlib.closing(feed(0, itertools.repeat(range(count)))) as rows:
        return count * rate(rows, warm_up, -(-batches // count))


def rate(batches: Iterable, warm_up: int = 16, count: int = 64) -> float:
    """Return the rows per second of ``count`` batches of BATCH rows, after ``warm_up`` batches, each waited for."""
    batches = iter(batches)
    for batch in itertools.islice(batches, warm_up):
        jax.block_until_ready(batch)
    start = time.perf_counter()
    for batch in itertools.islice(batches, count):
        jax.block_until_ready(batch)
    return count * BATCH / (time.perf_counter() - start)


def run_training(config: Config) -> list[dict]:
    """Train, without output; return the lines of metrics.jsonl but the first 2."""
    with open("/dev/null", "w") as nowhere, contextlib.redirect_stdout(nowhere):
        train(config)
    return [json.loads(line) for line in pathlib.Path(config.run, "metrics.jsonl").read_text().splitlines()][2:]


if __name__ == "__main__":
    with report_errors():
        main()
