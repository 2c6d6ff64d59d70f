"""Run commands with one wrong or extreme field each, in processes of their own, and print a table of exit statuses.

    python -m tests.fuzz.commands --seconds 600
    python -m tests.fuzz.commands --seconds 600 --commands train,evaluate --seed 1

A run fails if it prints a traceback, ends with another status than 0, 1, 2 or the time limit, prints more than one line
on stderr with status 2, or leaves or changes a file with status 2. Its arguments are printed, and the status is 1.
"""

import argparse
import collections
import contextlib
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback

from revelio_jax import commands
from revelio_jax.config import schema
from tests.fuzz import mutations

NAMES = ("extract", "train", "evaluate", "export", "interpret", "grid", "plan", "steer")
SECONDS, MEMORY = 40, 12 << 30  # of one run; bytes of address space over the start
SMALL = """\
from revelio_jax.config import default

def get_config():
    c = default()
    c.run, c.model.id, c.model.device = "run", "extract/miniature/sd", "cpu"
    c.extract.prompts, c.extract.sites, c.extract.store = "prompts.txt", ("clip.layer.1",), "store"
    c.extract.shard_samples, c.extract.chunk_rows = 4, 32
    c.sae.k, c.sae.expansion, c.train.steps, c.train.batch_size, c.sae.k_aux = 4, 1, 2, 32, 0
    c.data.buffer_chunks, c.data.held_out, c.interpret.top, c.train.checkpoint_every = 4, 0.2, 2, 1
    c.steer.steps, c.steer.height, c.steer.width = 1, 32, 32
    return c
"""
OWN = {"steer": ["--concept=owl", "--strength=-1", "--prompt=owl"], "grid": ["--grid", "sae.k=2,3"]}
EXTREME = ("0", "-1", "1", "2", "4611686018427387904", "1e30", "1e-30", "nan", "inf", "0.5", "yes", "x", "a,b", "1,2")
PATHS = ("/", "/dev/null", "prompts.txt", "no/such", "store", "run", "../", "x" * 300, "file://x", "memory://x/")


def values_of(name: str, draw: random.Random) -> str:
    """Return a random text for a field."""
    choices = schema.field_spec(name)[1]["choices"] or ()
    texts = [text.replace("\0", "") for text in mutations.TEXTS]
    return draw.choice([*choices, *EXTREME, *draw.sample(PATHS, 4), *draw.sample(texts, 4)])


def run(arguments: list[str], errors: pathlib.Path, seconds: int = SECONDS) -> int:
    """Run a command in a forked process. Return its exit status, or minus the number of the signal that ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 70
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.alarm(seconds)
        commands.main(arguments)
        status = 0
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def listing(folder: pathlib.Path) -> set[tuple[str, int, int]]:
    """Return path, size and time of every file in a folder."""
    found = set()
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            stat = path.stat()
            found.add((str(path), stat.st_size, stat.st_mtime_ns if path.is_file() else 0))
    return found


def fault(status: int, text: str, changed: set[tuple[str, int, int]]) -> str:
    """Return what is wrong with a finished run, or "" if nothing is."""
    if "Traceback" in text:
        return "traceback: " + text.strip().splitlines()[-1][:200]
    if status not in (0, 1, 2, -signal.SIGALRM):
        return f"status {status}: {text.strip()[-200:]}"
    if status == 2 and (text.count("error: ") != 1 or len(text.splitlines()) > 1):
        return f"not one line: {text[:300]!r}"
    if status == 2 and changed:
        return f"files left with status 2: {sorted(path for path, *_ in changed)[:3]}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--commands", default=",".join(NAMES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names, draw = options.commands.split(","), random.Random(options.seed)
    counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in names}
    import jax  # noqa: F401 - forked processes share what is imported
    import torch  # noqa: F401

    import extract.run  # noqa: F401
    import revelio_jax.steering
    import revelio_jax.train  # noqa: F401

    with tempfile.TemporaryDirectory() as parent:
        base, work, errors = pathlib.Path(parent, "base"), pathlib.Path(parent, "work"), pathlib.Path(parent, "errors")
        base.mkdir()
        (base / "small.py").write_text(SMALL)
        (base / "prompts.txt").write_text(
            "".join(f"flat emoji of {name}\n" for name in ["owl", "cat", "dog", "sun", "car", "hat"])
        )
        os.chdir(base)
        for name in ("extract", "train", "evaluate", "export", "interpret"):
            if status := run([name, "--config=small.py"], errors, 300):
                sys.exit(f"revelio {name} ends with status {status} with valid fields: {errors.read_text()}")
        failed, end = 0, time.monotonic() + options.seconds
        while time.monotonic() < end:
            name, field = draw.choice(names), draw.choice(schema.field_names())
            argument = f"--config.{field}={values_of(field, draw)}"
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(base, work)
            os.chdir(work)
            if name in ("extract", "train") and draw.random() < 0.7:
                shutil.rmtree("store" if name == "extract" else "run")
            before = listing(work)
            status = run([name, "--config=small.py", argument, *OWN.get(name, [])], errors)
            wrong = fault(status, errors.read_text(errors="replace"), listing(work) ^ before)
            counts[name]["time" if status == -signal.SIGALRM else str(status)] += 1
            if wrong:
                failed += 1
                counts[name]["failed"] += 1
                print(f"FAILED revelio {name} {argument[:150]!r}: {wrong}", file=sys.stderr, flush=True)
        os.chdir("/")
    print("| command | runs | status 0 | 1 | 2 | longer than the limit | failed |\n|---|---|---|---|---|---|---|")
    for name, count in counts.items():
        runs = sum(count.values()) - count["failed"]
        print(f"| {name} | {runs} | {count['0']} | {count['1']} | {count['2']} | {count['time']} | {count['failed']} |")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
