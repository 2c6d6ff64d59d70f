"""Set the clock back while a command runs, kill it, set the clock back again, continue, and compare the results.

    python tests/benchmarks/clock_back.py                 # needs libfaketime: apt-get install faketime
    python tests/benchmarks/clock_back.py --command train

The clock goes back by 3 days in the middle of the command, which is killed later. The second start runs 5 days before
the first. Monotonic clocks are not changed. Prints one JSON line per command: whether the files are those of an
uninterrupted run (`same`), and otherwise their names.
"""

import argparse
import glob
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import kills

LIBRARY = "/usr/lib/*/faketime/libfaketimeMT.so.1"


def measure(work: kills.Workplace, command: str, library: str) -> dict[str, object]:
    """Return the outcome of a command whose clock goes back."""
    work.prepare(command)
    started = time.perf_counter()
    work.run(command)
    seconds = time.perf_counter() - started
    whole = kills.read_tree(work.out)

    clock = work.out.parent / "clock"
    work.prepare(command)
    environment = os.environ | {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    line = [sys.executable, "-m", "revelio_jax", command, *work.arguments(command)]
    clock.write_text("+0")
    process = subprocess.Popen(line, env=environment, stdout=sys.stderr)
    time.sleep(0.6 * seconds)
    clock.write_text("-3d")
    time.sleep(0.2 * seconds)
    process.send_signal(signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    clock.write_text("-5d")
    status = subprocess.run(line, env=environment, stdout=sys.stderr).returncode
    differing = kills.difference(kills.read_tree(work.out), whole)
    return {"command": command, "killed": killed, "status": status, "same": not differing, "differing": differing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", action="append", choices=kills.CASES, help="default: extract, train and grid")
    commands = parser.parse_args().command or ["extract", "train", "grid"]
    libraries = glob.glob(LIBRARY)
    if not libraries:
        sys.exit("libfaketime is not installed; apt-get install faketime")
    os.chdir(kills.ROOT)
    with tempfile.TemporaryDirectory(prefix="clock-") as folder:
        work = kills.Workplace(pathlib.Path(folder), pathlib.Path(), "")
        rows = []
        for command in commands:
            rows.append(measure(work, command, libraries[0]))
            print(json.dumps(rows[-1]), flush=True)
    sys.exit(not all(row["same"] and not row["status"] for row in rows))


if __name__ == "__main__":
    main()
