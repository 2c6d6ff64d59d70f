"""The loader alone against reading chunks and nothing else, on a store that is made for it.

    python tests/benchmarks/loader_speed.py --json loader.json
    python tests/benchmarks/loader_speed.py --json loader.json --gb 8 --dtype bfloat16 --lanes 4

``raw`` reads all chunks in the order of the file, in as many threads as the loader has, and drops them.
``loader`` takes as many rows from ``data.batches``, after a warm-up of one group, so that the groups that
are read ahead before the clock starts make up for those that are read ahead when it stops. Both in
turn, ``--rounds`` times; a row has the median rate, in 10^6 bytes of rows as stored a second, all rates, and
the ratio to raw. The store was just written, so it comes from the page cache wherever it fits: a
disk makes raw slower, and the ratio better.
"""

import argparse
import concurrent.futures
import itertools
import statistics
import tempfile
import time

import numpy as np
import results

from revelio_jax.errors import reported
from revelio_jax.store import SitePlan, StorePlan, StoreWriter
from revelio_jax.training import loader
from revelio_jax.training.mixture import Mixture, open_mixture

BATCH, BUFFER_CHUNKS, CHUNK_ROWS, SHARD_ROWS, SAMPLE_ROWS = 4096, 256, 256, 32_768, 64


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, help="file for the result")
    parser.add_argument("--gb", type=float, default=2, help="size of the store in 10^9 bytes")
    parser.add_argument("--d", type=int, default=768, help="width of a row")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--lanes", type=int, default=1, help="config.data.lanes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the store is made; a temporary folder where it is left out")
    options = parser.parse_args()
    results.checked(options.json)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write(folder, options.gb, options.d, options.dtype)
        mixture = open_mixture([f"1:{folder}"])
        order = loader.make_order(mixture, 0, BATCH, BUFFER_CHUNKS, 0.0, options.lanes)
        modes = {"raw": lambda: raw(mixture), "loader": lambda: loader(mixture, order)}
        rates = {name: [] for name in modes}
        for _ in range(options.rounds):
            for name, measure in modes.items():
                rates[name].append(measure())
    median = {name: statistics.median(found) for name, found in rates.items()}
    found = [
        {"mode": name, "mb_per_s": median[name], "ratio": median[name] / median["raw"], "all": rates[name]}
        for name in modes
    ]
    results.write(options.json, {"options": vars(options), "rows": found})
    for row in found:
        print(f"{row['mode']:8} {row['mb_per_s']:8.0f} MB/s  {row['ratio']:.2f}")


def write(folder: str, gb: float, d: int, dtype: str) -> None:
    item = 4 if dtype == "float32" else 2
    shards = max(1, round(gb * 1e9 / (SHARD_ROWS * d * item)))
    samples = SHARD_ROWS // SAMPLE_ROWS
    site = SitePlan("site", d, (SHARD_ROWS,) * shards)
    plan = StorePlan((site,), dtype, CHUNK_ROWS, samples, shards * samples, {"made": "for a benchmark"})
    writer = StoreWriter(folder, plan, [{"id": i} for i in range(plan.samples)])
    values = np.random.default_rng(0).standard_normal((SHARD_ROWS, d), np.float32)
    row = np.arange(SHARD_ROWS, dtype=np.int32)
    for shard in range(shards):
        index = {"sample": shard * samples + row // SAMPLE_ROWS, "position": row % SAMPLE_ROWS}
        writer.write_shard(shard, {"site": {"activations": values, **index, "timestep": 0 * row}})
    writer.finish()


def raw(mixture: Mixture) -> float:
    (site,) = mixture.sites
    array = site.arrays["activations"]

    def read(chunk):
        array[slice(*chunk)].read().result()

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(loader.READERS) as readers:
        for _ in readers.map(read, site.chunks):
            pass
    return 1e-6 * site.rows * site.d * mixture.dtype.itemsize / (time.perf_counter() - start)


def loader(mixture: Mixture, order: loader.Order) -> float:
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
    with reported():
        main()
