"""Compare a live run with extraction followed by training, and kill live runs.

    python tests/benchmarks/live.py --json live.json
    python tests/benchmarks/live.py --kills 10 --rounds 0

Both ways train the same SAE on --samples samples of a config for one epoch, with shards of --shard_samples samples, of
which a live run keeps at most --live_shards. Every command is a new process, and imports count. The ways take turns,
and the rows of --json are {round, extract_s, train_s, store_cpu_s, store_mb, live_s, live_cpu_s, live_mb, ratio,
cpu_ratio}. Seconds are wall time, or CPU time of all processes in ``_cpu_s``. The ratios are the store's way divided by
the live run. ``live_mb`` is the largest size of the live store that was seen.

With --kills, one more live run is killed this many times at random moments, the trainer and the extraction in turn, and
resumed. Its exported SAE must have the same bits as that of an uninterrupted run. The line of each kill names the
process that was killed and the exit status of the trainer.
"""

import argparse
import contextlib
import csv
import dataclasses
import itertools
import os
import pathlib
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import results
from safetensors.numpy import load_file

from revelio_jax import cli, config
from revelio_jax.errors import InputError, report_errors


def size_mb(folder: pathlib.Path) -> float:
    """Return the size of the files in a folder, some of which may be deleted meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total / 1e6


def cpu_seconds() -> float:
    """Return the CPU time of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def start(command: str, path: pathlib.Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "revelio_jax", command, "--config", str(path), *flags],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run(command: str, path: pathlib.Path, *flags: str, watched: pathlib.Path | None = None) -> tuple[float, float]:
    """Run a command to its end; return its seconds and the largest size of the folder ``watched``."""
    began, largest = time.perf_counter(), 0.0
    process = start(command, path, *flags)
    while True:
        try:
            output, _ = process.communicate(timeout=0.2 if watched else None)
            break
        except subprocess.TimeoutExpired:
            largest = max(largest, size_mb(watched))
    if process.returncode:
        raise RuntimeError(f"{command} ended with status {process.returncode}: {output[-2000:]}")
    return time.perf_counter() - began, largest


def write_config(options: argparse.Namespace, folder: pathlib.Path, run_name: str, live: bool) -> pathlib.Path:
    """Write the config of a run as JSON and return its path."""
    base = config.resolve(cli.load(options.config))
    with open(base.extract.prompts, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with (folder / "prompts.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(random.Random(0).sample(rows, options.samples))
    site = base.data.site or base.extract.sites[0]
    extract = dataclasses.replace(
        base.extract, prompts=str(folder / "prompts.csv"), sites=(site,), store=str(folder / "store"),
        shard_samples=options.shard_samples, batch_size=min(base.extract.batch_size, options.shard_samples),
        save_images=False,
    )  # fmt: skip
    data = dataclasses.replace(base.data, live=live, live_shards=options.live_shards, held_out=options.held_out)
    train = dataclasses.replace(
        base.train, steps=options.steps, batch_size=options.batch, checkpoint_every=options.checkpoint_every,
        warmup_steps=0,
    )  # fmt: skip
    sae = dataclasses.replace(base.sae, b_dec_init_rows=4 * options.batch)
    made = dataclasses.replace(base, run=str(folder / run_name), extract=extract, data=data, train=train, sae=sae)
    path = folder / f"{run_name}.json"
    path.write_text(made.to_json())
    return path


def measure(options: argparse.Namespace, folder: pathlib.Path, number: int) -> dict[str, float]:
    """Train in both ways, in an order that alternates with the round."""
    store, live = (write_config(options, folder, f"{name}{number}", name == "live") for name in ("store", "live"))
    row = {"round": number}

    def by_store() -> None:
        began = cpu_seconds()
        row["extract_s"], _ = run("extract", store, f"--config.extract.store={folder / f'store_{number}'}")
        row["train_s"], _ = run("train", store, f"--config.extract.store={folder / f'store_{number}'}")
        row["store_cpu_s"] = cpu_seconds() - began
        row["store_mb"] = size_mb(folder / f"store_{number}")

    def by_live() -> None:
        began = cpu_seconds()
        row["live_s"], row["live_mb"] = run("train", live, watched=folder / f"live{number}" / "live")
        row["live_cpu_s"] = cpu_seconds() - began

    ways = [by_store, by_live]
    for way in ways if number % 2 else ways[::-1]:
        way()
    row["ratio"] = (row["extract_s"] + row["train_s"]) / row["live_s"]
    row["cpu_ratio"] = row["store_cpu_s"] / row["live_cpu_s"]
    return row


def children(pid: int) -> list[int]:
    """Return the processes that a process started, on Linux."""
    files = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


def kill(options: argparse.Namespace, folder: pathlib.Path) -> int:
    """Kill a live run at random moments and compare its SAE with an uninterrupted one. Return the number of kills."""
    whole, parts = (write_config(options, folder, name, live=True) for name in ("whole", "parts"))
    seconds, _ = run("train", whole)
    moments, kills = random.Random(0), 0
    for turn in itertools.count(1):
        process = start("train", parts, "--config.train.resume=yes")
        time.sleep(moments.uniform(0, seconds / 2))
        if process.poll() is None and kills < options.kills:
            extraction = children(process.pid)
            victim = extraction[0] if turn % 2 and extraction else process.pid
            os.kill(victim, signal.SIGKILL)
            kills += 1
            output, _ = process.communicate(timeout=60)  # both processes hold the pipe, so both end
            print(
                f"kill {kills}: {'extraction' if victim != process.pid else 'trainer'}; status {process.returncode}",
                flush=True,
            )
            continue
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(output[-2000:])
        break
    if kills < options.kills:
        raise RuntimeError(f"the run ended after {kills} kills; increase --steps")
    for path in (whole, parts):
        run("export", path)
    left, right = (load_file(folder / name / "export/sae_weights.safetensors") for name in ("whole", "parts"))
    if not all((left[name] == right[name]).all() for name in left):
        raise RuntimeError("the SAE of the killed run differs")
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="mini_sd_unet")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--shard_samples", type=int, default=8)
    parser.add_argument("--live_shards", type=int, default=5)
    parser.add_argument("--held_out", type=float, default=0.04)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=35)
    parser.add_argument("--checkpoint_every", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--json")
    options = parser.parse_args()
    results.check(options.json)
    if options.samples < 3 * options.shard_samples:
        raise InputError(f"--samples is {options.samples}; it must be at least 3 times --shard_samples")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        rows = []
        for number in range(options.rounds):
            rows.append(measure(options, folder, number))
            print(", ".join(f"{key} {value:.3g}" for key, value in rows[-1].items()), flush=True)
        if rows:
            medians = [statistics.median(row[name] for row in rows) for name in ("ratio", "cpu_ratio")]
            print("median ratio {:.2f}, of CPU time {:.2f}".format(*medians))
        if options.kills:
            print(f"{kill(options, folder)} kills: the SAE has the same bits")
    results.write(options.json, rows)


if __name__ == "__main__":
    with report_errors():
        main()
