"""Start multi-process runs, and stop runs on SIGTERM."""

import contextlib
import signal
import threading
import typing
from collections.abc import Callable, Generator

import jax
from jax.experimental import multihost_utils

from revelio_jax.config import MeshConfig
from revelio_jax.errors import InputError
from revelio_jax.training import supervisor

_received = threading.Event()  # SIGTERM, in a block of sigterm()

STOPPED = 128 + signal.SIGTERM  # exit status 143: stopped by SIGTERM after a checkpoint


class Stopped(Exception):
    """SIGTERM was received while a step waited for its rows."""


@contextlib.contextmanager
def joined(mesh: MeshConfig, advice: Callable[[], str]) -> Generator[None]:
    """Run the block in this process, or together with the other processes of the run if ``mesh.distributed``.

    Call it before any other use of JAX. Cloud TPU, SLURM, Open MPI and Kubernetes are detected. Otherwise each process
    needs the address of the coordinator, the number of processes and its own number. Raise InputError if fields
    contradict each other or the processes do not connect.

    If another process ends or does not answer for ``mesh.timeout`` seconds, this process ends with status 1 and one
    line, which ends with ``advice()``.
    """
    _check(mesh)
    if not mesh.distributed:
        yield
        return
    supervisor.supervise(mesh, advice)
    with supervisor.ending_at_once():
        _connect(mesh)
        yield


def _check(mesh: MeshConfig) -> None:
    """Raise InputError if fields contradict each other."""
    if not mesh.distributed and (mesh.coordinator or mesh.processes > 1 or mesh.process):
        # Otherwise each process would train alone.
        raise InputError(
            "config.mesh.distributed is False; it must be True if config.mesh.coordinator, processes or process is set"
        )
    if mesh.coordinator and not 0 <= mesh.process < mesh.processes:
        raise InputError(
            f"config.mesh.process is {mesh.process}; it must be at least 0 and below config.mesh.processes, "
            f"{mesh.processes}"
        )


def _connect(mesh: MeshConfig) -> None:
    """Connect to the coordinator. Raise InputError if that fails."""
    peers: dict[str, typing.Any] = {}
    if mesh.coordinator:
        peers = {
            "coordinator_address": mesh.coordinator,
            "num_processes": mesh.processes,
            "process_id": mesh.process,
        }
    try:
        jax.distributed.initialize(
            **peers, initialization_timeout=mesh.start_timeout, heartbeat_timeout_seconds=mesh.timeout
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"config.mesh.distributed: {str(error).strip().splitlines()[0]}; without a cluster, set "
            "config.mesh.coordinator (host:port), processes and process"
        ) from error


def is_first() -> bool:
    """Return whether this process writes the files that all processes share."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Wait until all processes of the run have called this function with ``name``."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def sigterm() -> Generator[Callable[[int], bool]]:
    """Yield ``is_stopped(number)``, to call after every dispatch: it returns whether SIGTERM was received.

    With several processes, all stop after the same dispatch once one of them receives SIGTERM. They agree on a later
    number, so numbers must increase by 1.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield lambda number: False
        return
    _received.clear()
    previous = signal.signal(signal.SIGTERM, lambda *_: _received.set())
    try:
        yield lambda number: _received.is_set()
    finally:
        signal.signal(signal.SIGTERM, previous)
        _received.clear()


def received_sigterm() -> bool:
    """Return whether this process has received SIGTERM in a block of :func:`sigterm`."""
    return _received.is_set()
