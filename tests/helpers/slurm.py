"""A real SLURM on this machine: one controller and two nodes, whose addresses are 127.0.0.1 and 127.0.0.2."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.helpers import ROOT

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue", "sinfo")

# A node has the name of its address, because JAX connects to the name of the first node of a job.
# cred_expire: a requeued job waits this long; by default two minutes, at least five seconds.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs
MailProg=/bin/true
ReturnToService=2
NodeName=127.0.0.1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=127.0.0.2 NodeHostname={host} NodeAddr=127.0.0.2 Port={ports[2]} CPUs=2
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def missing() -> str | None:
    """Return why SLURM cannot be started here, or None."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
    if absent:
        return f"{', '.join(absent)} not installed (on Debian: slurm-wlm and munge)"
    return "its daemons need root" if os.geteuid() else None


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A running SLURM. ``environment`` makes its commands find it."""

    folder: pathlib.Path
    environment: Mapping[str, str]

    def run(self, *command: str, **variables: str) -> str:
        """Run a command in the project's folder and return its output. Fail if its status is not 0."""
        done = subprocess.run(
            command, cwd=ROOT, env={**self.environment, **variables}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def states(self) -> dict[str, str]:
        """Return the state of every job and of every task of an array, by number, for example 1_0."""
        return dict(
            line.split()
            for line in self.run("squeue", "--noheader", "--states=all", "--format=%i %T").split("\n")
            if line
        )

    def wait(self, condition: Callable[[], bool], seconds: float, description: str) -> None:
        """Wait until the condition holds. Fail with the states and the end of the daemons' logs if it never does."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                logs = [f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log"))]
                pytest.fail("\n".join([f"{description}: not within {seconds} s", str(self.states()), *logs]))
            time.sleep(0.02)


@contextlib.contextmanager
def running(environment: Mapping[str, str]) -> Iterator[Cluster]:
    """Start SLURM in a temporary folder, and end its jobs and daemons at the end of the block.

    PATH of ``environment`` must have the programs of SLURM and ``revelio``: without it, launch/slurm would install the
    project.
    """
    assert shutil.which("revelio", path=environment["PATH"]), "no revelio on PATH; launch/slurm would install it"
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="slurm") as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        folder.chmod(0o755)  # munge needs a socket that everyone can reach
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        config = folder / "slurm.conf"
        config.write_text(CONFIG.format(host=socket.gethostname(), folder=folder, ports=_unused_ports(3)))
        cluster = Cluster(folder, {**environment, "SLURM_CONF": str(config)})

        def start(*command: str) -> None:
            log = stack.enter_context((folder / f"{'-'.join(command[:3:2])}.log").open("w"))
            process = subprocess.Popen(command, stdout=log, stderr=log, env=cluster.environment)
            stack.callback(process.wait)
            stack.callback(process.terminate)

        files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
        cluster.wait((folder / "munge.socket").exists, 60, "munged")
        start("slurmctld", "-D")
        start("slurmd", "-D", "-N", "127.0.0.1")
        start("slurmd", "-D", "-N", "127.0.0.2")
        stack.callback(_end_jobs, cluster)

        def is_idle() -> bool:
            done = subprocess.run(
                ["sinfo", "--noheader", "--format=%D %T"], env=cluster.environment, capture_output=True, text=True
            )
            return done.stdout.split() == ["2", "idle"]

        cluster.wait(is_idle, 120, "two idle nodes")
        yield cluster


def _end_jobs(cluster: Cluster) -> None:
    """Kill all jobs and wait until their processes are gone."""
    subprocess.run(["scancel", "--user=root"], env=cluster.environment, check=False)
    subprocess.run(["scancel", "--user=root", "--signal=KILL", "--full"], env=cluster.environment, check=False)
    cluster.wait(lambda: not cluster.run("squeue", "--noheader"), 300, "the end of all jobs")


def _unused_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]
