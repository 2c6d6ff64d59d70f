"""Which of several workers this process is: by the config, or as torchrun or SLURM says."""

from collections.abc import Mapping

from revelio_jax.config import ExtractConfig
from revelio_jax.errors import InputError
from revelio_jax.store import Worker


def find(extract: ExtractConfig, environment: Mapping[str, str]) -> Worker:
    """``config.extract.worker`` of ``workers``; where they are not given, the environment's; else 0 of 1.

    torchrun sets RANK and WORLD_SIZE, a SLURM array SLURM_ARRAY_TASK_ID with _MIN, _STEP and _COUNT, and
    srun SLURM_PROCID and SLURM_NTASKS; an array whose jobs have several tasks counts all of them. Raises
    InputError where the environment contradicts itself.
    """
    if extract.workers:
        return Worker(extract.worker or 0, extract.workers)
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return _worker(environment, "RANK", "WORLD_SIZE")
    jobs = tasks = Worker()
    if "SLURM_ARRAY_TASK_ID" in environment:
        jobs = _worker(
            environment,
            "SLURM_ARRAY_TASK_ID",
            "SLURM_ARRAY_TASK_COUNT",
            _number(environment, "SLURM_ARRAY_TASK_MIN"),
            _number(environment, "SLURM_ARRAY_TASK_STEP", "1"),
        )
    if "SLURM_PROCID" in environment:
        tasks = _worker(environment, "SLURM_PROCID", "SLURM_NTASKS")
    return Worker(jobs.number * tasks.count + tasks.number, jobs.count * tasks.count)


def _worker(environment: Mapping[str, str], number_name: str, count_name: str, first: int = 0, step: int = 1) -> Worker:
    number, count = _number(environment, number_name), _number(environment, count_name)
    if count < 1 or step < 1:
        raise InputError(f"{count_name} is {count} in the environment, in steps of {step}; both must be above 0")
    place, rest = divmod(number - first, step)
    if rest or not 0 <= place < count:
        steps = f" in steps of {step}" if step > 1 else ""
        raise InputError(
            f"{number_name} is {number}; with {count_name} {count} it must be from {first} to "
            f"{first + (count - 1) * step}{steps}, or config.extract.worker and workers be given"
        )
    return Worker(place, count)


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    value = environment.get(name, default)
    try:
        return int(value)
    except ValueError as error:
        raise InputError(
            f"{name} is {value!r} in the environment; it must be a number, "
            "or config.extract.worker and workers be given"
        ) from error
