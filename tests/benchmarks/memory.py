"""Measure the peak memory of train steps, for several dictionary sizes and batch sizes.

    python tests/benchmarks/memory.py --json memory.json
    python tests/benchmarks/memory.py --sizes 768,262144,32,4096,8192

Each size is d,n,k,batch,encode_chunk and runs in its own process: two steps from fresh parameters on random rows, in
float32, with AuxK, on one device; encode_chunk 0 encodes all latents at once. Columns: ``peak_gib`` is the largest
resident memory of the process, ``state_gib`` the parameters and both Adam moments, ``gradients_gib`` the gradients,
``pre_activations_gib`` the whole matrix [batch, n], which an encode in chunks never allocates.
"""

import argparse
import json
import subprocess
import sys

import results

from revelio_jax.errors import report_errors

SIZES = [
    "768,65536,32,4096,0",
    "768,65536,32,4096,8192",
    "768,131072,32,4096,8192",
    "768,262144,32,2048,8192",
    "768,262144,32,4096,8192",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="d,n,k,batch,encode_chunk of each run")
    parser.add_argument("--json", metavar="FILE", help="file to write the rows to")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*map(int, options.one.split(",")))))
        return
    results.check(options.json)
    rows = []
    print("| d | n | k | batch | encode_chunk | state GiB | gradients | pre-activations | peak |\n" + "|---" * 9 + "|")
    for size in options.sizes:
        process = subprocess.run([sys.executable, __file__, "--one", size], capture_output=True, text=True)
        if process.returncode:
            sys.exit(f"error: {size}: {process.stderr.strip().splitlines()[-1]}")
        row = json.loads(process.stdout.splitlines()[-1])
        rows.append(row)
        print(
            "| {d} | {n} | {k} | {batch} | {encode_chunk} | {state_gib:.2f} | {gradients_gib:.2f} "
            "| {pre_activations_gib:.2f} | {peak_gib:.2f} |".format(**row),
            flush=True,
        )
    results.write(options.json, rows)


def measure(d: int, n: int, k: int, batch: int, encode_chunk: int) -> dict[str, float]:
    """Return the row of one size; run in its own process, since peak memory never falls."""
    import jax
    import numpy as np

    from revelio_jax.config import SaeConfig, TrainConfig
    from revelio_jax.sae import initial, sharding
    from revelio_jax.training import metrics
    from revelio_jax.training.step import initial_state, make_train_step

    sae = SaeConfig(k=k, latents=n, encode_chunk=encode_chunk or None)
    train = TrainConfig(batch_size=batch)
    mesh = sharding.make_mesh(1, 1, batch, n)
    params = initial.initial_params(sae, 0, n, np.zeros(d), np.zeros((1, d)), mesh)
    state = initial_state(params, np.zeros(d), 1.0, sae, train, mesh)
    del params
    train_step = make_train_step(sae, train, mesh)
    x_BD = sharding.put_batch(mesh, np.random.default_rng(0).standard_normal((batch, d), np.float32))
    for _ in range(2):
        state, step_metrics = train_step(state, x_BD)
        jax.block_until_ready(step_metrics)
    matrices = 2 * d * n * 4 / 2**30
    return {
        "d": d,
        "n": n,
        "k": k,
        "batch": batch,
        "encode_chunk": encode_chunk,
        "state_gib": 3 * matrices,
        "gradients_gib": matrices,
        "pre_activations_gib": batch * n * 4 / 2**30,
        "peak_gib": metrics.peak_rss_gib(),
    }


if __name__ == "__main__":
    with report_errors():
        main()
