"""Measure pieces, whole steps, the input path and torch trainers on one GPU or TPU, in one command of 9 minutes.

    bash tests/benchmarks/peers.sh      # once, with the torch of the GPU: creates .venv-peers with sparsify
    python tests/benchmarks/accelerator.py --json rows.jsonl
    python tests/benchmarks/accelerator.py --table rows.jsonl      # print the rows as Markdown
    python tests/benchmarks/accelerator.py --json rows.jsonl --small      # tiny sizes, on a CPU

| part | measured |
|---|---|
| step | a copy and the encoder product, then whole steps: each form of the products, with and without AuxK |
| peers | steps of sparsify and of a dense torch trainer, and sparsify's Triton kernels |
| pieces | top-k, weight gradients, decoding and Adam, variants side by side; kernels against their plain forms |
| input | rows from the host and from resident rows, the modes of input_path.py |

Every part of a size runs in a process of its own, so that memory is free and its peak belongs to it. All data are
random. After every row, a JSON line {part, name, size, ms, ..., device, jax or torch, date} is printed, and appended to
--json. ``size`` is [d, latents, k, batch]. ms are medians of rounds of calls that are queued together. Other fields:

    compile_s    seconds to compile, temp_gib: its temporaries; ratio, floor_ms: see accelerator_step.py
    bit_same     two runs gave the same bits; for a step, 3 steps from the same start
    resumed_bit_same    3 steps from a state that was saved on the host gave the bits of the uninterrupted run
    values_equal, indices_equal    to lax.top_k; difference: to a float32 sum, as a share of its largest number
    skipped, error    why a row has no ms

The first two sizes come first, then the others. Parts that are left when the time is over get one row that says so.
"""

import argparse
import datetime
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

import results
from accelerator_rows import Size

from revelio_jax.errors import InputError, report_errors

SIZES = "4096x65536x32x8192,768x12288x32x4096,3072x65536x32x8192,4096x262144x64x8192"
SMALL = "128x512x4x64"
PARTS = ("step", "peers", "pieces", "input")
FIRST = 2  # sizes whose parts come before those of the others
MOST_SHARES = 3  # a part may take this many times its share of the remaining time
WITHIN = 0.9  # a part starts no row after this share of its time


def measure(parts: list[str], sizes: list[Size], options: argparse.Namespace) -> None:
    """Run every part of every size in a process, and print and write its rows."""
    end = time.time() + 60 * options.minutes
    todo = [(part, size) for group in (sizes[:FIRST], sizes[FIRST:]) for part in parts for size in group]
    for i, (part, size) in enumerate(todo):
        left = end - time.time()
        limit = min(left, MOST_SHARES * left / (len(todo) - i))
        if limit < 1:
            record(options.json, stopped(part, size, {"skipped": "out of time"}))
        else:
            run(part, size, limit, options)


def run(part: str, size: Size, limit: float, options: argparse.Namespace) -> None:
    """Run a part in a process of at most ``limit`` seconds and record its rows."""
    script = pathlib.Path(__file__).with_name(f"accelerator_{part}.py")
    python = options.python_of_peers if part == "peers" else sys.executable
    command = [python, script, *size, time.time() + WITHIN * limit, *["small"] * options.small]
    # Without preallocation, the memory that a process does not use is free for the tools of the GPU's owner.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ
    with tempfile.TemporaryFile("w+") as errors:
        pipes = {"stdout": subprocess.PIPE, "stderr": errors, "text": True, "env": environment}
        # A session of its own, so that compilers that the part has started end with it.
        with subprocess.Popen(list(map(str, command)), start_new_session=True, **pipes) as process:
            timer = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
            timer.start()
            try:
                for line in process.stdout:
                    record(options.json, json.loads(line))
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            finally:
                is_late = not timer.is_alive()
                timer.cancel()
        if is_late:
            record(options.json, stopped(part, size, {"skipped": f"stopped after {limit:.0f} s: out of time"}))
        elif process.returncode:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or [f"status {process.returncode}"])[-1]
            record(options.json, stopped(part, size, {"error": last[:300]}))


def stopped(part: str, size: Size, reason: dict) -> dict:
    """Return the row for the rest of a part."""
    return {"part": part, "name": "(rest)", "size": size, "ms": None, **reason, "date": str(datetime.date.today())}


def record(path: str | None, row: dict) -> None:
    """Print a row and append it to ``path``."""
    line = json.dumps(row)
    print(line, flush=True)
    if path:
        with open(path, "a") as file:
            print(line, file=file)


def table(path: str) -> str:
    """Return the rows of a file as Markdown: one table for each part, device, version and date. Raise InputError."""
    try:
        rows = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"--table is {path!r}; it must be a file that --json wrote: {error}") from None
    shared = ("part", "device", "jax", "torch", "date")
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in shared), []).append(row)
    texts = []
    for group, members in groups.items():
        columns = list(dict.fromkeys(name for row in members for name in row if name not in (*shared, "size")))
        values = zip(shared[1:], group[1:], strict=True)
        lines = [f"## {group[0]}", "", ", ".join(f"{name} {value}" for name, value in values if value), ""]
        lines += [f"| size | {' | '.join(columns)} |", "|---|---|" + "---:|" * (len(columns) - 1)]
        for row in members:
            cells = ["" if row.get(name) is None else str(row[name]).replace("|", "/") for name in columns]
            lines.append(f"| {' x '.join(map(str, row['size']))} | {' | '.join(cells)} |")
        texts.append("\n".join(lines))
    return "\n\n".join(texts)


def parse_sizes(text: str) -> list[Size]:
    """Parse --sizes. Raise InputError."""
    sizes = []
    for part in text.split(","):
        values = part.split("x")
        if len(values) != 4 or not all(value.isdecimal() and int(value) for value in values):
            raise InputError(f"--sizes has {part!r}; it must be d x latents x k x batch, for example {SMALL}")
        size = Size(*map(int, values))
        if size.k > size.n:
            raise InputError(f"--sizes has {part!r}; k must be at most the number of latents")
        sizes.append(size)
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", metavar="FILE", help="file to append the rows to, one JSON line each")
    parser.add_argument("--sizes", help=f"d x latents x k x batch, one or more (default: {SIZES}, or {SMALL} if small)")
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to measure (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=9, help="time for all rows (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="shorten the parts, for a test on a CPU")
    parser.add_argument(
        "--python-of-peers", default=sys.executable, help="Python that has torch and sparsify (default: this one)"
    )
    parser.add_argument("--table", metavar="FILE", help="print the rows of a file as Markdown, and measure nothing")
    options = parser.parse_args()
    if options.table:
        print(table(options.table))
        return
    results.check(options.json)
    parts, sizes = options.parts.split(","), parse_sizes(options.sizes or (SMALL if options.small else SIZES))
    if unknown := [part for part in parts if part not in PARTS]:
        raise InputError(f"--parts has {unknown[0]!r}; it must be one of {', '.join(PARTS)}")
    if not options.minutes > 0:
        raise InputError(f"--minutes is {options.minutes}; it must be above 0")
    measure(parts, sizes, options)


if __name__ == "__main__":
    with report_errors():
        main()
