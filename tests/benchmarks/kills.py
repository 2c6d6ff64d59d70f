"""Kill every command with SIGKILL at random moments, run it again, and compare with an uninterrupted run.

    python tests/benchmarks/kills.py --kills 20 --json kills.jsonl
    python tests/benchmarks/kills.py --command train --command grid

Each command runs on a small part of the mini_sd config. Of its kills, 8 are at random times from its start to its end,
6 in a random write, of which half of the bytes are written, and 6 at a random rename or removal of a file. A command
that writes no files is killed only at random times. After every kill, files with a final name must be whole. Then the
command runs again. It must succeed and leave exactly the files of an uninterrupted run. The second run is left out if
the kill left the same bytes in the same files as before the command, or as an earlier kill that it survived.

Prints one JSON line per command:

    command     the command
    tried       kills
    survived    kills after which the command gave the result of the uninterrupted run
    torn        kills that left a part of a file under its final name
    failed      kills after which the command failed
    wrong       kills after which the command gave another result; `faults` names the places and the files
    places      kills by kind
    seconds     of the whole measurement
"""

import argparse
import collections
import contextlib
import csv
import dataclasses
import hashlib
import http.server
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import typing
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.helpers.kills import Place, Server, compile_library  # noqa: E402

PROMPTS = ROOT / "extract/miniature/sd/prompts.csv"
ROWS = 200  # prompts
CLOCK, WRITES = 0.4, 0.3  # shares of the kills; the others are renames and removals
# Values that differ between two uninterrupted runs.
VARYING = {
    "made",
    "checksum",
    "seconds",
    "rows_per_s",
    "step_s",
    "data_wait_s",
    "rss_gib",
    "inference_ms",
    "commit_timestamp_nsecs",
}
# Files that grow while the command runs, so a part of them is not a fault.
GROWING = (".jsonl", "probes.json")


class Case(typing.NamedTuple):
    """A command: its arguments, and the earlier commands whose results it needs."""

    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()
    with_config: bool = True


GLOSSY, CATEGORY = ("--concept", "style=glossy 3d"), "category=face"
BENCHMARK = tuple(  # without times, which differ between runs
    f"--config.benchmark.{field}"
    for field in (
        "prompts=4",
        "seeds=1",
        "strengths=-1,-0.5",
        "repetitions=0",
        "methods=steer rule=swap,negative_prompt",
    )
)
FEW = ("--measure", "4", "--strength=-1,0")
EXPORTED = ("extract", "train", "export")
CASES = {
    "extract": Case(()),
    "train": Case(("--config.train.resume=yes",), ("extract",)),
    "grid": Case(("--grid", "sae.k=10,20", "--config.train.resume=yes"), ("extract",)),
    "evaluate": Case((), ("extract", "train")),
    "export": Case((), ("extract", "train")),
    "learn": Case(GLOSSY, EXPORTED),
    "steer": Case((*GLOSSY, *FEW), EXPORTED),
    "sweep": Case((*GLOSSY, *FEW), EXPORTED),
    "benchmark": Case(("--concept", CATEGORY, *BENCHMARK), EXPORTED),
    "interpret": Case((), EXPORTED),
    "report": Case((), (*EXPORTED, "interpret")),
    "tags": Case(("--config.tags.model=fake", "--config.tags.latents=4"), (*EXPORTED, "interpret")),
    "probes": Case(("RUN", "--label", "style", "--probe", "linear"), EXPORTED, with_config=False),
    "granularity": Case(("RUN",), (*EXPORTED, "interpret"), with_config=False),
    "plot": Case(("RUN",), ("extract", "train"), with_config=False),
    "plan": Case(("--topology", "h100:1", "--smallest", "no"), ("extract",)),
}


@dataclasses.dataclass
class Measurement:
    """The outcomes of the kills of one command."""

    command: str
    tried: int = 0
    survived: int = 0
    torn: int = 0
    failed: int = 0
    wrong: int = 0
    places: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    faults: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0


class Workplace:
    """The folders of a measurement: ``out`` is what commands write, ``saved`` the results of finished commands."""

    def __init__(self, folder: pathlib.Path, library: pathlib.Path, endpoint: str):
        self.out, self.saved = folder / "out", folder / "saved"
        self._library, self._endpoint = library, endpoint
        self._modules: dict[str, list[str]] = {}
        self._prompts = folder / "prompts.csv"
        with PROMPTS.open() as file:
            head, *rows = csv.reader(file)
        with self._prompts.open("w", newline="") as file:
            csv.writer(file).writerows([head, *random.Random(0).sample(rows, ROWS)])

    def arguments(self, command: str) -> list[str]:
        """Return the arguments of a command on the small config."""
        case = CASES[command]
        own = [str(self.out / "run") if each == "RUN" else each for each in case.arguments]
        if not case.with_config:
            return own
        fields = {
            "run": self.out / ("grid" if command == "grid" else "run"),
            "extract.store": self.out / "store",
            "extract.prompts": self._prompts,
            "extract.shard_samples": 100,
            "extract.batch_size": 50,
            "sae.expansion": 2,
            "sae.dead_after_rows": 2000,
            "train.batch_size": 128,
            "train.steps": 60,
            "train.learning_rate": 0.03,  # so that the checkpoint with the lowest FVU is often not the newest
            "train.warmup_steps": 10,
            "train.checkpoint_every": 10,
            "train.keep": 1,
            "data.buffer_chunks": 4,
            "logging.every": 5,
            "steer.prompts": self._prompts,
            "steer.steps": 2,
            "tags.endpoint": self._endpoint,
        }
        return ["--config", "mini_sd", *(f"--config.{name}={value}" for name, value in fields.items()), *own]

    def server(self, command: str) -> Server:
        """Return a server that has imported all modules of a command that has run before."""
        from revelio_jax.commands import COMMANDS

        return Server(self._library, COMMANDS[command][0], *self.modules(command))

    def modules(self, command: str) -> list[str]:
        """Return the modules of a command that has run before."""
        return self._modules[command]

    def run(self, command: str) -> None:
        """Run a command uninterrupted, as a process of its own."""
        names = self.out.parent / "modules.json"
        code = (
            "import json, sys; from revelio_jax.commands import main; main(sys.argv[2:]); "
            "json.dump(sorted(sys.modules), open(sys.argv[1], 'w'))"
        )
        done = subprocess.run([sys.executable, "-c", code, names, command, *self.arguments(command)], stdout=sys.stderr)
        if done.returncode:
            sys.exit(f"{command} ended with status {done.returncode}")
        self._modules[command] = json.loads(names.read_text())

    def prepare(self, command: str) -> None:
        """Leave in ``out`` the results of the commands that a command needs; run them the first time."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        for earlier in CASES[command].after:
            if not (self.saved / earlier).exists():
                self.finish(earlier)
        for earlier in CASES[command].after[-1:]:
            shutil.copytree(self.saved / earlier, self.out, dirs_exist_ok=True)

    def finish(self, command: str) -> None:
        """Run a command uninterrupted and save its results."""
        self.prepare(command)
        self.run(command)
        shutil.copytree(self.out, self.saved / command, dirs_exist_ok=True)


def measure(work: Workplace, command: str, kills: int, seed: int) -> Measurement:
    """Kill a command ``kills`` times and count the outcomes."""
    measurement, chance, started = Measurement(command), random.Random(f"{command} {seed}"), time.perf_counter()
    arguments = work.arguments(command)
    work.prepare(command)
    survived = {state_of(work.out)}  # a command that is killed before it writes leaves the state of its start
    work.run(command)
    whole = read_tree(work.out)
    with contextlib.closing(work.server(command)) as server:
        work.prepare(command)
        begun = time.perf_counter()
        calls = server.count(arguments, f"{work.out}/")
        seconds = time.perf_counter() - begun
        if differing := difference(read_tree(work.out), whole):
            sys.exit(f"two uninterrupted runs of {command} differ in {differing}")
        kinds = [draw(chance, calls, i / kills) for i in range(kills)]
        while kinds:
            kind = kinds.pop()
            place = make_place(chance, kind, calls, seconds, f"{work.out}/")
            work.prepare(command)
            if server.run(arguments, place) != -signal.SIGKILL:
                kinds.append(kind)  # it had ended before
                continue
            measurement.tried += 1
            measurement.places[kind] += 1
            if (state := state_of(work.out)) in survived:
                measurement.survived += 1
                continue
            torn = [name for name, content in read_tree(work.out).items() if is_torn(name, content, whole)]
            status = server.run(arguments)
            differing = "" if status else difference(read_tree(work.out), whole)
            measurement.torn += bool(torn)
            measurement.failed += bool(status)
            measurement.wrong += bool(differing)
            measurement.survived += not (torn or status or differing)
            if torn or status or differing:
                measurement.faults.append(f"{place.call} {place.number}: {torn or differing or f'status {status}'}")
            else:
                survived.add(state)
    measurement.seconds = time.perf_counter() - started
    return measurement


def draw(chance: random.Random, calls: dict[str, int], share: float) -> str:
    """Return the kind of a kill, so that all kinds of calls that a command makes get their share."""
    if share < CLOCK or not calls["write"]:
        return "clock"
    if share < CLOCK + WRITES or not calls["rename"]:
        return "write"
    return chance.choices(("rename", "unlink"), (2, 1 if calls["unlink"] else 0))[0]


def make_place(chance: random.Random, kind: str, calls: dict[str, int], seconds: float, path: str) -> Place:
    if kind == "clock":
        return Place("clock", chance.randint(1, int(1000 * seconds)))
    return Place(kind, chance.randint(1, calls[kind]), path)


def state_of(folder: pathlib.Path) -> str:
    """Return a hash of the names and the bytes of all files under ``folder``."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        data = path.read_bytes() if path.is_file() else b"/"
        digest.update(f"{path.relative_to(folder)} {len(data)} ".encode() + data)
    return digest.hexdigest()


def read_tree(folder: pathlib.Path) -> dict[str, str]:
    """Return the content of every file under ``folder`` as text or as a hash, without values that vary.

    The arrays of a checkpoint are one entry, because Orbax gives its files random names.
    """
    contents: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == "_CHECKPOINT_METADATA" and path.parent.name.isdecimal():
            contents[name] = read_checkpoint(path.parent)
        elif path.is_dir():
            contents[f"{name}/"] = ""
        elif "/checkpoints/" not in f"/{name}" and not name.endswith(".lock"):  # an empty file that commands ignore
            contents[name] = read_file(path)
    # Orbax's files in a finished checkpoint are not compared; others are leftovers.
    finished = tuple(name.rpartition("/")[0] + "/" for name in contents if name.endswith("/_CHECKPOINT_METADATA"))
    return {
        name: content
        for name, content in contents.items()
        if not name.startswith(finished) or name.endswith("/_CHECKPOINT_METADATA")
    }


def read_file(path: pathlib.Path) -> str:
    data = path.read_bytes()
    if path.suffix not in (".json", ".jsonl"):
        return hashlib.sha256(data).hexdigest()
    with contextlib.suppress(ValueError):
        lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data]
        texts = [json.dumps(without_varying(json.loads(line)), sort_keys=True) for line in lines]
        return "\n".join(sorted(texts) if path.name == "tags_cache.jsonl" else texts)  # in the order of the answers
    return f"broken: {data!r}"


def without_varying(value: typing.Any) -> typing.Any:
    if isinstance(value, dict):
        return {key: without_varying(part) for key, part in value.items() if key not in VARYING}
    return [without_varying(part) for part in value] if isinstance(value, list) else value


def read_checkpoint(folder: pathlib.Path) -> str:
    """Return a hash of the arrays of a checkpoint, and its metrics."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        try:
            restored = reader.restore(folder, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
        except Exception as error:
            return f"broken: {error!r}"
    digest = hashlib.sha256()
    for name, leaf in jax.tree_util.tree_leaves_with_path(restored):
        digest.update(jax.tree_util.keystr(name).encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest() + (folder / "metrics/metrics").read_text()


def difference(contents: dict[str, str], whole: dict[str, str]) -> str:
    """Return the names of the files that differ, at most three."""
    names = sorted(name for name in contents.keys() | whole.keys() if contents.get(name) != whole.get(name))
    return ", ".join(names[:3])


def is_torn(name: str, content: str, whole: dict[str, str]) -> bool:
    """Return whether a file with a final name has neither the content of the finished command nor none."""
    if content.startswith("broken: ") and not name.endswith((".jsonl", ".part")):
        return ".part/" not in name
    return name in whole and content != whole[name] and not name.endswith(GROWING) and "/checkpoints/" not in name


@contextlib.contextmanager
def fake_endpoint() -> Iterator[str]:
    """Serve the answers of a vision-language model, a function of the question. Yield the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            text = json.loads(body)["messages"][0]["content"][-1]["text"]
            digest = hashlib.sha256(body).digest()
            answer = (
                ("yes", "no")[digest[0] % 2] if 'Label: "' in text else "A" if "one letter" in text else digest.hex()
            )
            payload = json.dumps({"choices": [{"message": {"role": "assistant", "content": answer}}]}).encode()
            with contextlib.suppress(OSError):  # the client was killed
                self.send_response(200)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

        def log_message(self, *_):
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listener.server_port}/v1"
    listener.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", action="append", choices=CASES, help="command to kill; may be repeated; all")
    parser.add_argument("--kills", type=int, default=20, help="kills of each command (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: %(default)s)")
    parser.add_argument("--json", type=pathlib.Path, help="file to which the lines are appended")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="kills-") as folder, fake_endpoint() as endpoint:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/compiled")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        work = Workplace(pathlib.Path(folder), compile_library(pathlib.Path(folder)), endpoint)
        wrong = 0
        for command in arguments.command or CASES:
            measurement = measure(work, command, arguments.kills, arguments.seed)
            wrong += measurement.tried - measurement.survived
            values = {field.name: getattr(measurement, field.name) for field in dataclasses.fields(measurement)}
            line = json.dumps(values | {"seconds": round(measurement.seconds, 1)})
            print(line, flush=True)
            if arguments.json:
                with arguments.json.open("a") as file:
                    file.write(line + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
