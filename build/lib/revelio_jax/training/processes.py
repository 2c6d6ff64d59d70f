"""Processes that train together, and the signal that asks them to stop."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from revelio_jax.config import MeshConfig
from revelio_jax.errors import InputError

STOPPED = 128 + signal.SIGTERM  # exit status 143: stopped by SIGTERM, saved, to be resumed


def start(mesh: MeshConfig) -> None:
    """Join the other processes of the run, where ``mesh.distributed``; before anything else of JAX.

    Cloud TPU, SLURM, Open MPI and Kubernetes say who the others are. Elsewhere every process is told the
    coordinator's address, their number and its own. Raises InputError where they do not find together.
    """
    if not mesh.distributed:
        if mesh.coordinator or mesh.processes > 1 or mesh.process:  # or each would train alone
            raise InputError(
                "config.mesh.distributed is False; it must be True where config.mesh.coordinator, "
                "processes or process is given"
            )
        return
    told = {}
    if mesh.coordinator:
        told = {
            "coordinator_address": mesh.coordinator,
            "num_processes": mesh.processes,
            "process_id": mesh.process,
        }
        if not 0 <= mesh.process < mesh.processes:
            raise InputError(
                f"config.mesh.process is {mesh.process}; it must be from 0 to config.mesh.processes - 1, "
                f"{mesh.processes - 1}"
            )
    try:
        jax.distributed.initialize(**told)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"config.mesh.distributed: {str(error).strip().splitlines()[0]}; where no cluster says who "
            "takes part, give config.mesh.coordinator (host:port), processes and process"
        ) from error


def is_first() -> bool:
    """Whether this is the process that writes what all have in common."""
    return jax.process_index() == 0


@contextlib.contextmanager
def sigterm() -> Iterator[Callable[[int], bool]]:
    """``asked(step)``, to be called after every step: whether SIGTERM has asked the run to stop.

    With several processes it is enough that one is asked; all are then told to stop after the same step.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():  # where Python handles no signals
        yield lambda step: False
        return
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield lambda step: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
