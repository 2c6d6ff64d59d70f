"""Compare the speed of the loader with reading chunks alone, on a store that is created for it.

    python tests/benchmarks/loader_speed.py --json loader.json
    python tests/benchmarks/loader_speed.py --json loader.json --gb 8 --dtype bfloat16 --lanes 4

``raw`` reads all chunks in file order, in as many threads as the loader has, and drops them. ``loader`` takes the same
number of rows from ``loader.batches``, after a warm-up of one group of chunks. The warm-up makes up for the groups that
are still being read ahead at the end. The two take turns for --rounds rounds. A row has the median rate in 10^6 bytes
of stored rows per second, all rates, and the ratio to ``raw``. The store has just been written, so it is read from the
page cache if it fits there. Reading from a disk makes ``raw`` slower and the ratio higher.
"""

import argparse
import concurrent.futures
import itertools
import statistics
import tempfile
import time

import numpy as np
import results

from revelio_jax.errors import report_errors
from revelio_jax.store import SitePlan, StorePlan, StoreWriter
from revelio_jax.training import loader
from revelio_jax.training.mixture import Mixture, open_mixture

BATCH, BUFFER_CHUNKS, CHUNK_ROWS, SHARD_ROWS, SAMPLE_ROWS = 4096, 256, 256, 32_768, 64


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, metavar="FILE", help="file to write the rows to")
    parser.add_argument("--gb", type=float, default=2, help="size of the store in 10^9 bytes (default: %(default)s)")
    parser.add_argument("--d", type=int, default=768, help="width of a row (default: %(default)s)")
    dtypes = ("float32", "float16", "bfloat16")
    parser.add_argument("--dtype", default="float32", choices=dtypes, help="dtype of the store (default: %(default)s)")
    parser.add_argument("--lanes", type=int, default=1, help="value of config.data.lanes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each mode (default: %(default)s)")
    parser.add_argument("--folder", help="folder to create the store in (default: a temporary folder)")
    options = parser.parse_args()
    results.check(options.json)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write(folder, options.gb, options.d, options.dtype)
        mixture = open_mixture([f"1:{folder}"])
        order = loader.make_order(mixture, 0, BATCH, BUFFER_CHUNKS, 0.0, options.lanes)
        modes = {"raw": lambda: read_raw(mixture), "loader": lambda: read_batches(mixture, order)}
        rates = {name: [] for name in modes}
        for _ in range(options.rounds):
            for name, measure in modes.items():
                rates[name].append(measure())
    median = {name: statistics.median(values) for name, values in rates.items()}
    rows = [
        {"mode": name, "mb_per_s": median[name], "ratio": median[name] / median["raw"], "all": rates[name]}
        for name in modes
    ]
    results.write(options.json, {"options": vars(options), "rows": rows})
    for row in rows:
        print(f"{row['mode']:8} {row['mb_per_s']:8.0f} MB/s  {row['ratio']:.2f}")


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


def read_raw(mixture: Mixture) -> float:
    """Read all chunks; return the rate in 10^6 bytes per second."""
    (site,) = mixture.sites
    array = site.arrays["activations"]

    def read(chunk):
        array[slice(*chunk)].read().result()

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(loader.READERS) as readers:
        for _ in readers.map(read, site.chunks):
            pass
    return 1e-6 * site.rows * site.d * mixture.dtype.itemsize / (time.perf_counter() - start)


def read_batches(mixture: Mixture, order: loader.Order) -> float:
    """Read all rows with the loader; return the rate in 10^6 bytes per second."""
    stream = loader.batches(mixture, order, 0)
    for _ in itertools.islice(stream, BUFFER_CHUNKS * CHUNK_ROWS // BATCH):
        pass
    count = order.rows // BATCH
    start = time.perf_counter()
    for _ in itertools.islice(stream, count):
        pass
    seconds = time.perf_counter() - start
    stream.close()
    return 1e-6 * count * BATCH * mixture.d * mixture.dtype.itemsize / seconds


if __name__ == "__main__":
    with report_errors():
        main()
