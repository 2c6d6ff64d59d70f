"""Find the number of this process among the workers of a store, from the config, torchrun or SLURM."""

import typing
from collections.abc import Mapping

from revelio_jax.config import ExtractConfig
from revelio_jax.errors import InputError
from revelio_jax.store import Worker

# SLURM numbers the steps that srun starts from 0. Larger numbers are special steps, for example the batch script.
FIRST_SPECIAL_STEP = 0xFFFF_FFF0


class Assignment(typing.NamedTuple):
    """The worker of this process. ``source`` describes where the number comes from and how to change it."""

    worker: Worker
    source: str

    def __str__(self) -> str:
        """Return the line that a run prints first."""
        return f"{self.worker}: {self.source}"


def find(extract: ExtractConfig, environment: Mapping[str, str]) -> Assignment:
    """Return the worker of this process: from config.extract.worker and workers, the environment, or else 0 of 1.

    torchrun sets RANK and WORLD_SIZE. A SLURM array sets SLURM_ARRAY_TASK_ID with _MIN, _STEP and _COUNT. srun sets
    SLURM_PROCID and SLURM_STEP_NUM_TASKS (or SLURM_NTASKS) in the steps that it starts; in an array whose jobs have
    such steps, every task is a worker. A batch script has SLURM_PROCID too, but runs once per job, so it is one worker.
    Raise InputError if the environment contradicts itself.
    """
    if extract.workers:
        return Assignment(Worker(extract.worker or 0, extract.workers), "set by config.extract.worker and workers")
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return Assignment(_worker(environment, "RANK", "WORLD_SIZE"), "set by torchrun (RANK and WORLD_SIZE)")
    job = task = Worker()
    sources: list[str] = []
    if "SLURM_ARRAY_TASK_ID" in environment:
        job = _worker(
            environment,
            "SLURM_ARRAY_TASK_ID",
            "SLURM_ARRAY_TASK_COUNT",
            _number(environment, "SLURM_ARRAY_TASK_MIN"),
            _number(environment, "SLURM_ARRAY_TASK_STEP", "1"),
        )
        sources.append(f"task {environment['SLURM_ARRAY_TASK_ID']} of the SLURM array")
    if "SLURM_PROCID" in environment and _is_step(environment):
        count = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
        task = _worker(environment, "SLURM_PROCID", count)
        sources.append(f"task {task.number} of SLURM step {environment['SLURM_STEP_ID']}")
    worker = Worker(job.number * task.count + task.number, job.count * task.count)
    source = f"set by {' and '.join(sources)}" if sources else "this process writes the whole store"
    if worker.count > 1:
        source += "; config.extract.workers=1 writes the whole store in this process"
    if not _is_step(environment) and environment.get("SLURM_NTASKS", "1") != "1":
        source += f"; SLURM gave the job {environment['SLURM_NTASKS']} tasks, which only srun starts"
    return Assignment(worker, source)


def _is_step(environment: Mapping[str, str]) -> bool:
    """Return whether srun started this process, not sbatch or salloc alone."""
    step = environment.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < FIRST_SPECIAL_STEP


def _worker(environment: Mapping[str, str], number_name: str, count_name: str, first: int = 0, step: int = 1) -> Worker:
    number, count = _number(environment, number_name), _number(environment, count_name)
    if count < 1 or step < 1:
        raise InputError(f"{count_name} is {count}, in steps of {step}; both must be at least 1")
    index, remainder = divmod(number - first, step)
    if remainder or not 0 <= index < count:
        steps = f" in steps of {step}" if step > 1 else ""
        raise InputError(
            f"{number_name} is {number}; with {count_name}={count} it must be from {first} to "
            f"{first + (count - 1) * step}{steps}; otherwise set config.extract.worker and workers"
        )
    return Worker(index, count)


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    value = environment.get(name, default)
    try:
        return int(value)
    except ValueError as error:
        raise InputError(
            f"{name} is {value!r}; it must be a whole number; otherwise set config.extract.worker and workers"
        ) from error
