"""Find the number of this process among the workers of a store, from the config, torchrun or SLURM."""

from collections.abc import Mapping

from revelio_jax.config import ExtractConfig
from revelio_jax.errors import InputError
from revelio_jax.store import Worker


def find(extract: ExtractConfig, environment: Mapping[str, str]) -> Worker:
    """Return the worker of this process: from config.extract.worker and workers, the environment, or else 0 of 1.

    torchrun sets RANK and WORLD_SIZE. A SLURM array sets SLURM_ARRAY_TASK_ID with _MIN, _STEP and _COUNT. srun sets
    SLURM_PROCID and SLURM_NTASKS; in an array whose jobs have several tasks, every task is a worker. Raise
    InputError if the environment contradicts itself.
    """
    if extract.workers:
        return Worker(extract.worker or 0, extract.workers)
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return _worker(environment, "RANK", "WORLD_SIZE")
    job = task = Worker()
    if "SLURM_ARRAY_TASK_ID" in environment:
        job = _worker(
            environment,
            "SLURM_ARRAY_TASK_ID",
            "SLURM_ARRAY_TASK_COUNT",
            _number(environment, "SLURM_ARRAY_TASK_MIN"),
            _number(environment, "SLURM_ARRAY_TASK_STEP", "1"),
        )
    if "SLURM_PROCID" in environment:
        task = _worker(environment, "SLURM_PROCID", "SLURM_NTASKS")
    return Worker(job.number * task.count + task.number, job.count * task.count)


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
