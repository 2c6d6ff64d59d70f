"""Run commands with too little address space, continue them without the limit, and compare the results.

    python tests/benchmarks/little_memory.py
    python tests/benchmarks/little_memory.py --command train --mib 50 --mib 200

A limit is RLIMIT_AS (`ulimit -v`) in MiB above what the imported modules take. Prints one JSON line per limit:

    status    exit status of the limited command, negative for a signal; 0: the memory was enough
    lines     lines of its stderr, without progress bars and warnings; `last` is the last one
    same      whether the command then gives the result of an uninterrupted run, without anything left behind
"""

import argparse
import importlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile

import kills

COMMANDS = ("extract", "train", "export", "interpret", "steer")
LIMITS = (20, 60, 150, 400)


def limited(command: str, mib: int, stderr: pathlib.Path, arguments: list[str], modules: list[str]) -> int:
    """Import the modules of a command, limit the memory, run it, and return its exit status."""
    code = "import json, sys; import little_memory; little_memory.serve(*json.load(sys.stdin))"
    values = json.dumps([command, mib, arguments, modules])
    with stderr.open("w") as file:
        here = str(pathlib.Path(__file__).parent)
        environment = os.environ | {"PYTHONPATH": f"{here}:{kills.ROOT}"}
        line = [sys.executable, "-c", code]
        return subprocess.run(line, input=values, text=True, env=environment, stdout=file, stderr=file).returncode


def serve(command: str, mib: int, arguments: list[str], modules: list[str]) -> None:
    from revelio_jax.commands import main

    for module in modules:
        try:
            importlib.import_module(module)
        except Exception:
            continue
    size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + mib * 2**20,) * 2)
    main([command, *arguments])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", action="append", choices=kills.CASES, help=f"default: {', '.join(COMMANDS)}")
    parser.add_argument("--mib", action="append", type=int, help=f"default: {', '.join(map(str, LIMITS))}")
    arguments = parser.parse_args()
    os.chdir(kills.ROOT)
    good = True
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        work = kills.Workplace(pathlib.Path(folder), pathlib.Path(), "")
        for command in arguments.command or COMMANDS:
            work.prepare(command)
            work.run(command)
            whole = kills.read_tree(work.out)
            for mib in arguments.mib or LIMITS:
                work.prepare(command)
                output = work.out.parent / "stderr"
                status = limited(command, mib, output, work.arguments(command), work.modules(command))
                lines = [line for line in output.read_text().splitlines() if line.startswith(("error", "Traceback"))]
                work.run(command)
                differing = kills.difference(kills.read_tree(work.out), whole)
                row = {"command": command, "mib": mib, "status": status, "lines": len(lines), "same": not differing}
                last = (output.read_text().splitlines() or [""])[-1][:300]
                print(json.dumps(row | {"last": last, "differing": differing}), flush=True)
                good &= not differing
    sys.exit(not good)


if __name__ == "__main__":
    main()
