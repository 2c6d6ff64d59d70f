"""Extract and train on hosts that are apart, and cut, heal, kill and freeze one of them.

    sudo env PYTHONPATH=. python tests/benchmarks/hosts_apart.py --hosts 2 --folder /tmp/hosts
    sudo env PYTHONPATH=. python tests/benchmarks/hosts_apart.py --hosts 4 --folder /tmp/hosts --faults cut_last

The hosts are network namespaces of this machine; it needs root and Debian's iproute2. Each host runs one process of
``revelio train``, or one worker of ``revelio extract``, of a shortened mini_sd. The fault comes in the middle. A line
per fault has the seconds after which each process ended, its status and its last line. Then the same command runs again
without a fault: ``same`` says whether it ends with the parameters, or the store, of a run without a fault.

| fault | what happens to the last host; `_first`: to the host of the coordinator |
|---|---|
| cut_last, cut_first | the cable is pulled for good |
| heal_10, heal_30 | the cable is pulled for 10 or 30 s |
| kill_last, kill_first | all processes of the host are killed |
| freeze_last | the process is stopped (SIGSTOP) |
| absent_last | the process never starts |
| extract_cut, extract_kill | the same for extraction, whose workers do not communicate |
"""

import argparse
import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Sequence

from tests.helpers import MINIATURES, ROOT, hosts

FAULTS = (
    "cut_last", "cut_first", "heal_10", "heal_30", "kill_last", "kill_first", "freeze_last", "absent_last",
    "extract_cut", "extract_kill",
)  # fmt: skip
PROMPTS, SHARD = 480, 24
MOST_S = 180  # a process that has not ended after this time hangs


class Ended(typing.NamedTuple):
    """How a process ended: seconds after the fault, None if it was still running; its status and its last line."""

    seconds: float | None
    status: int | None
    line: str


def main() -> None:
    options = _options()
    if reason := hosts.missing():
        raise SystemExit(f"error: no hosts: {reason}")
    folder = pathlib.Path(options.folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with (MINIATURES / "sd" / "prompts.csv").open(encoding="utf-8") as file:
        (folder / "prompts.csv").write_text("".join(file.readlines()[: PROMPTS + 1]))
    with hosts.network(options.hosts) as network:
        session = Session(network, folder, options.timeout)
        for fault in options.faults.split(","):
            session.extraction(fault) if fault.startswith("extract") else session.training(fault)


class Session:
    """Runs on the hosts of a network, and the results of runs without a fault, which are made when first needed."""

    def __init__(self, network: hosts.Network, folder: pathlib.Path, timeout: int):
        self.network, self.folder, self.timeout = network, folder, timeout
        self.count = len(network.addresses)
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }  # fmt: skip

    def training(self, fault: str) -> None:
        """Train with a fault, print how the processes ended, then resume."""
        store, run = self.folder / "store", self.folder / f"run_{self.count}_{fault}"
        if not (store / "manifest.json").exists():
            self._end(self._extract(store), 0)
        shutil.rmtree(run, ignore_errors=True)
        absent = [self.count - 1] if fault.startswith("absent") else []
        started = time.monotonic()
        running = self._train(run, 10**6, absent, start_timeout=30 if absent else 300)
        steps = 0
        if not absent:
            _wait(lambda: _steps(run) >= 120 or any(each.poll() is not None for each in running), 1200)
            started, steps = time.monotonic(), _steps(run)
        ended = self._break(fault, running, started)
        goes_on = all(each.seconds is None for each in ended)
        if goes_on:  # the run survived; stop it
            _wait(lambda: _steps(run) >= steps + 100)
            running[0].send_signal(signal.SIGTERM)
            ended = self._end(running, time.monotonic())
        saved = max([int(path.name) for path in run.glob("checkpoints/*") if path.name.isdecimal()], default=0)
        resumed = self._end(self._train(run, saved + 50), time.monotonic())
        good = self.folder / f"run_{self.count}_none_{saved + 50}"
        if not good.exists():
            self._end(self._train(good, saved + 50), time.monotonic())
        same = [_parameters(path / "checkpoints" / str(saved + 50)) for path in (run, good)]
        self._print(fault + (", survived, then SIGTERM" if goes_on else ""), ended)
        statuses = sorted({each.status for each in resumed}, key=str)
        print(f"  resumed from step {saved} to {saved + 50}: status {statuses}, same {same[0] == same[1]}", flush=True)

    def extraction(self, fault: str) -> None:
        """Extract with a fault, print how the workers ended, then run the same commands again."""
        store, good = self.folder / f"store_{self.count}_{fault}", self.folder / "store"
        if not (good / "manifest.json").exists():
            self._end(self._extract(good), time.monotonic())
        shutil.rmtree(store, ignore_errors=True)
        running = self._extract(store)
        last = store / f"shards/{self.count - 1:05d}.json"
        _wait(lambda: last.exists() or any(each.poll() is not None for each in running))
        ended = self._break(fault.replace("extract_", "") + "_last", running, time.monotonic())
        self._print(fault, ended)
        missing = PROMPTS // SHARD - len(list((store / "shards").glob("*.json")))
        again = self._end(self._extract(store), time.monotonic())
        statuses = sorted({each.status for each in again}, key=str)
        print(
            f"  {missing} shards were missing; again: status {statuses}, same {_files(store) == _files(good)}",
            flush=True,
        )

    def _break(self, fault: str, running: list[subprocess.Popen[str]], since: float) -> list[Ended]:
        kind, _, place = fault.partition("_")
        host = 0 if place == "first" else self.count - 1
        if kind in ("cut", "heal"):
            self.network.cut(host)
        elif kind == "kill":
            self.network.kill(host)
        elif kind == "freeze":
            self.network.signal(host, signal.SIGSTOP)
        heals = float(place) if kind == "heal" else None
        if heals:
            time.sleep(heals)
            self.network.heal(host)
        # A run that survives would go on for hours.
        ended = self._end(running, since, 60 if heals and heals < self.timeout else MOST_S, stop=not heals)
        self.network.heal(host)
        return ended

    def _end(
        self, running: list[subprocess.Popen[str]], since: float, most: float = MOST_S, stop: bool = True
    ) -> list[Ended]:
        """Wait until all processes have ended. Kill those that hang, unless ``stop`` is False."""
        seconds: dict[int, float] = {}
        _wait(lambda: _record(running, seconds, since) == len(running), most)
        frozen = [host for host in range(len(running)) if host not in seconds]
        if stop:
            for host in frozen:
                self.network.kill(host)
        return [
            Ended(seconds.get(host), each.poll(), "" if host in frozen and not stop else _last_line(each))
            for host, each in enumerate(running)
        ]

    def _train(
        self, run: pathlib.Path, steps: int, absent: Sequence[int] = (), start_timeout: int = 300
    ) -> list[subprocess.Popen[str]]:
        fields = {
            "extract.store": self.folder / "store", "run": run, "train.steps": steps, "train.resume": "yes",
            "train.batch_size": 64, "train.checkpoint_every": 50, "train.decay_share": 0, "logging.every": 1,
            "data.lanes": self.count, "data.buffer_chunks": 8, "mesh.distributed": "yes", "mesh.timeout": self.timeout,
            "mesh.start_timeout": start_timeout, "mesh.coordinator": f"{self.network.addresses[0]}:1234",
            "mesh.processes": self.count,
        }  # fmt: skip
        present = [host for host in range(self.count) if host not in absent]
        return [self._start(host, "train", {**fields, "mesh.process": host}) for host in present]

    def _extract(self, store: pathlib.Path) -> list[subprocess.Popen[str]]:
        fields = {
            "extract.prompts": self.folder / "prompts.csv", "extract.store": store, "extract.batch_size": 8,
            "extract.shard_samples": SHARD, "extract.workers": self.count,
        }  # fmt: skip
        return [self._start(host, "extract", {**fields, "extract.worker": host}) for host in range(self.count)]

    def _start(self, host: int, command: str, fields: dict[str, typing.Any]) -> subprocess.Popen[str]:
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        words = [sys.executable, "-m", "revelio_jax", command, "--config", "mini_sd", *flags]
        return self.network.start(host, words, self.environment)

    def _print(self, fault: str, ended: list[Ended]) -> None:
        print(f"{self.count} hosts, {fault}")
        for host, (seconds, status, line) in enumerate(ended):
            when = "still running, killed" if seconds is None else f"{seconds:.0f} s, status {status}"
            print(f"  host {host}: {when}: {line}")


def _record(running: list[subprocess.Popen[str]], seconds: dict[int, float], since: float) -> int:
    for host, each in enumerate(running):
        if each.poll() is not None:
            seconds.setdefault(host, time.monotonic() - since)
    return len(seconds)


def _wait(is_done: typing.Callable[[], bool], most: float = 300) -> bool:
    end = time.monotonic() + most
    while not (done := is_done()) and time.monotonic() < end:
        time.sleep(0.2)
    return done


def _last_line(process: subprocess.Popen[str]) -> str:
    out = process.communicate()[0]
    lines = [line for line in out.splitlines() if line.strip() and not line.startswith("[Gloo]")]
    errors = [line for line in lines if "error: " in line]
    return f"{len(errors)} error lines; {lines[-1] if lines else ''}"


def _steps(run: pathlib.Path) -> int:
    log = run / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def _files(folder: pathlib.Path) -> dict[str, str]:
    """Return the checksum of each file."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _parameters(checkpoint: pathlib.Path) -> dict[str, bytes]:
    """Return the arrays of a checkpoint, read in a process of its own, which may initialize JAX."""
    code = (
        "import sys, hashlib, numpy, orbax.checkpoint as ocp, jax\n"
        "tree = ocp.PyTreeCheckpointer().restore(sys.argv[1], args=ocp.args.PyTreeRestore(\n"
        "    restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=numpy.ndarray),\n"
        "    ocp.PyTreeCheckpointer().metadata(sys.argv[1]).item_metadata.tree)))\n"
        "for path, leaf in jax.tree_util.tree_leaves_with_path(tree):\n"
        "    print(jax.tree_util.keystr(path), hashlib.sha256(numpy.asarray(leaf).tobytes()).hexdigest())\n"
    )
    command = [sys.executable, "-c", code, str(checkpoint / "state")]
    done = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    return {"": b"failed" + done.stderr.encode()} if done.returncode else {"": done.stdout.encode()}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--folder", required=True, help="for stores and runs; may be removed afterwards")
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--timeout", type=int, default=30, help="config.mesh.timeout")
    return parser.parse_args()


if __name__ == "__main__":
    main()
