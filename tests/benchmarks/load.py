"""Measure how start-up time, rates and memory of every command grow with the number of rows of a store.

    python tests/benchmarks/load.py --json load.json
    python tests/benchmarks/load.py --small --folder /tmp

A store is generated for each of --rows, and each command runs on it in its own process. The store of 10^8 rows of width
16 in bfloat16 takes 4.7 GB. All shards have the same activations, and chunks and shards have the default sizes of
extraction.

| command | measured |
|---|---|
| status, verify | revelio extract --status and --verify |
| loader | batches of the loader for some seconds, after a warm-up |
| train | --steps steps, with a line of metrics after each |
| evaluate, export, interpret | the commands of this name; a share of 0.001 of the chunks is held out |
| grid | 20 SAEs, which share one pass over the store |

``start_s`` is the time until the first step, or until the first row is counted. ``rows_per_s`` is the median rate of
the last half of the steps, or all rows divided by the time after the start. ``cpu_s`` is the CPU time of the command.
``start_cpu_s`` and ``rows_per_cpu_s`` are the CPU time until the first batch of the loader and its rate per second of
CPU time; other work on the machine changes them less. ``peak_mb`` is the largest resident memory (VmHWM, Linux only);
pages of files are not part of it. Prints a table. With --json also writes
{options, rows: [{store_rows, command, seconds, cpu_s, start_s, rows_per_s, start_cpu_s, rows_per_cpu_s, peak_mb}]}.
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import pyarrow
import results

from revelio_jax.errors import InputError, report_errors
from revelio_jax.store import SitePlan, StorePlan, StoreWriter
from revelio_jax.training import loader
from revelio_jax.training.mixture import open_mixture

D, BATCH, SAMPLE_ROWS, SHARD_SAMPLES, CHUNK_ROWS, HELD_OUT = 16, 4096, 64, 512, 256, 0.001
SITE = "clip.layer.1"
COMMANDS = ("status", "verify", "loader", "train", "evaluate", "export", "interpret", "grid")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="file to write the rows to")
    parser.add_argument("--rows", default="1e6,1e7,1e8", help="rows of the stores (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="steps of training (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="time of the loader (default: %(default)s)")
    parser.add_argument("--commands", default=",".join(COMMANDS), help="commands to run (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="two small stores and few steps, to test this benchmark")
    parser.add_argument(
        "--folder", help="folder for the stores (default: a temporary folder); existing ones are reused"
    )
    parser.add_argument("--loader-of", metavar="STORE", help="only print the rate of the loader on a store")
    options = parser.parse_args()
    if options.loader_of:
        loader_rate(options.loader_of, options.seconds)
        return
    if options.small:
        options.rows, options.steps, options.seconds = "40000,160000", 12, 0.2
    results.check(options.json)
    try:
        sizes, commands = [int(float(rows)) for rows in options.rows.split(",")], options.commands.split(",")
    except (ValueError, OverflowError):
        raise InputError(f"--rows is {options.rows!r}; it must be numbers, for example 1e6,1e8") from None
    if options.folder and not pathlib.Path(options.folder).is_dir():
        raise InputError(f"--folder is {options.folder!r}; it must be a folder")
    if min(sizes) < SHARD_SAMPLES * SAMPLE_ROWS:
        raise InputError(
            f"--rows is {options.rows!r}; every store must have at least {SHARD_SAMPLES * SAMPLE_ROWS} rows"
        )
    if unknown := set(commands) - set(COMMANDS):
        raise InputError(f"--commands has {', '.join(sorted(unknown))}; allowed: {', '.join(COMMANDS)}")
    if options.steps < 4:
        raise InputError(f"--steps is {options.steps}; it must be at least 4")
    print("| rows of the store | command |", " | ".join(title for _, title, _ in COLUMNS), "|")
    print("| ---: | --- |", "---: | " * (len(COLUMNS) - 1) + "---: |", flush=True)
    rows = []
    with contextlib.ExitStack() as stack:
        folder = options.folder or stack.enter_context(tempfile.TemporaryDirectory())
        for size in sizes:
            for row in measure(pathlib.Path(folder), size, commands, options):
                rows.append(row)
                numbers = " | ".join("" if row[name] is None else f"{row[name]:{form}}" for name, _, form in COLUMNS)
                print(f"| {size:,} | {row['command']} | {numbers} |", flush=True)
    results.write(options.json, {"options": vars(options), "rows": rows})


COLUMNS = (
    ("seconds", "s", ".1f"),
    ("cpu_s", "CPU, s", ".1f"),
    ("start_s", "start, s", ".1f"),
    ("rows_per_s", "rows/s", ",.0f"),
    ("start_cpu_s", "start, CPU s", ".2f"),
    ("rows_per_cpu_s", "rows/CPU s", ",.0f"),
    ("peak_mb", "peak, MB", ",.0f"),
)
NOTHING = dict.fromkeys(name for name, _, _ in COLUMNS)


def measure(folder: pathlib.Path, size: int, commands: list[str], options: argparse.Namespace) -> Iterator[dict]:
    """Yield the row of each command on a store of ``size`` rows."""
    store, run, grid = folder / f"rows_{size}", folder / f"run_{size}", folder / f"grid_{size}"
    if not (store / "manifest.json").exists():
        started = time.perf_counter()
        write(store, size)
        yield NOTHING | {"store_rows": size, "command": "write", "seconds": time.perf_counter() - started}
    config = folder / "load.py"
    config.write_text(CONFIG)
    base = ["--config", str(config), f"--config.extract.store={store}", f"--config.train.steps={options.steps}"]
    one = [*base, f"--config.run={run}"]
    axes = ("sae.k=2,4", "sae.latents=32,64", "train.learning_rate=1e-4,2e-4,3e-4,4e-4,5e-4")
    grid_axes = [argument for axis in axes for argument in ("--grid", axis)]
    first = run / "metrics.jsonl"
    for command in commands:
        lines: pathlib.Path | None = None
        match command:
            case "status" | "verify":
                arguments = ["-m", "revelio_jax", "extract", *base, f"--{command}"]
            case "loader":
                arguments = [__file__, "--loader-of", str(store), "--seconds", str(options.seconds)]
            case "grid":
                lines = grid / "k=2,latents=32,learning_rate=0.0001" / "metrics.jsonl"
                arguments = ["-m", "revelio_jax", "grid", *base, f"--config.run={grid}", *grid_axes]
            case _:
                lines = first if command == "train" else None
                arguments = ["-m", "revelio_jax", command, *one]
        if lines:  # of an earlier measurement
            shutil.rmtree(run if command == "train" else grid, ignore_errors=True)
        row, output = observe(arguments, lines, folder)
        if lines:
            values = [json.loads(line)["rows_per_s"] for line in lines.read_text().splitlines()]
            row["rows_per_s"] = statistics.median(values[len(values) // 2 :])
        elif command == "loader":
            row |= json.loads(output)
        elif found := re.search(r"([\d,]+) rows per second", output):
            row["rows_per_s"] = float(found[1].replace(",", ""))
        elif command == "verify":
            row["rows_per_s"] = size / row["seconds"]
        yield {"store_rows": size, "command": command} | row


CONFIG = '''"""The configuration of the benchmark load.py."""

from revelio_jax import config


def get_config():
    made = config.default()
    made.model.id, made.model.family = "load", "sd"
    made.data.held_out, made.train.batch_size, made.sae.k, made.sae.latents = 0.001, 4096, 4, 64
    made.sae.dead_after_rows, made.logging.every, made.train.checkpoint_every = 40_960, 1, 1_000_000
    made.interpret.top = 5
    return made
'''


def observe(arguments: list[str], lines: pathlib.Path | None, folder: pathlib.Path) -> tuple[dict, str]:
    """Run a command; return its row, with ``start_s`` when the file ``lines`` has content, and its output."""
    log, row = folder / "output.txt", dict(NOTHING)
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, *arguments], stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if lines and row["start_s"] is None and lines.exists() and lines.stat().st_size:
                row["start_s"] = time.perf_counter() - started
            with contextlib.suppress(OSError):  # not on Linux, or the process has ended
                if found := re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path(f"/proc/{process.pid}/status").read_text()):
                    row["peak_mb"] = int(found[1]) / 1e3
            time.sleep(0.02)
    row["seconds"], after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    row["cpu_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    text = log.read_text()
    if process.returncode:
        raise InputError(f"{' '.join(arguments)} ended with status {process.returncode}: {text[-1000:]}")
    return row, text


def write(folder: pathlib.Path, size: int) -> None:
    """Write a store of ``size`` rows of width D in bfloat16, with prompts and a label per sample."""
    samples = -(-size // SAMPLE_ROWS)
    counts = np.diff(np.append(np.arange(0, samples, SHARD_SAMPLES), samples)) * SAMPLE_ROWS
    plan = StorePlan(
        (SitePlan(SITE, D, tuple(counts.tolist())),), "bfloat16", CHUNK_ROWS, SHARD_SAMPLES, samples,
        {"created_by": "benchmark"},
    )  # fmt: skip
    ids = np.arange(samples)
    table = pyarrow.table(
        {
            "id": ids,
            "prompt": pyarrow.array([f"prompt {i}" for i in range(samples)]),
            "label": pyarrow.array(list(itertools.islice(itertools.cycle("abcdefgh"), samples))),
        }
    )
    writer = StoreWriter(str(folder), plan, table)
    values = np.random.default_rng(0).standard_normal((SHARD_SAMPLES * SAMPLE_ROWS, D), np.float32)
    row = np.arange(len(values), dtype=np.int32)
    for shard, count in enumerate(counts.tolist()):
        index = {
            "sample": shard * SHARD_SAMPLES + row[:count] // SAMPLE_ROWS,
            "position": row[:count] % SAMPLE_ROWS,
            "timestep": np.full(count, -1, np.int32),
        }
        writer.write_shard(shard, {SITE: {"activations": values[:count], **index}})
    writer.finish()


def loader_rate(store: str, seconds: float) -> None:
    """Print the start-up time and the rates of the loader as JSON."""
    started, cpu = time.perf_counter(), time.process_time()
    mixture = open_mixture([store])
    order = loader.make_order(mixture, 0, BATCH, 256, HELD_OUT)
    with contextlib.closing(loader.batches(mixture, order, 0)) as batches:
        next(batches)
        start = {"start_s": time.perf_counter() - started, "start_cpu_s": time.process_time() - cpu}
        for _ in itertools.islice(batches, 3 * 256 * CHUNK_ROWS // BATCH):
            pass
        count, since, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - since < seconds:
            next(batches)
            count += BATCH
        rates = {
            "rows_per_s": count / (time.perf_counter() - since),
            "rows_per_cpu_s": count / (time.process_time() - cpu),
        }
    print(json.dumps(start | rates))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(pathlib.Path(__file__).parents[2]))
    with report_errors():
        main()
