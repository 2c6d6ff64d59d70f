"""The number of this process among several workers."""

import pytest
import torch

from extract import workers
from revelio_jax.config import ExtractConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines import loading
from revelio_jax.store import Worker

ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "4"}
TASKS = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}
STEP = {"SLURM_ARRAY_TASK_STEP": "2"}


@pytest.mark.parametrize(
    ("fields", "environment", "worker"),
    [
        ({}, {}, Worker(0, 1)),
        ({}, {"RANK": "2", "WORLD_SIZE": "3"}, Worker(2, 3)),
        ({}, TASKS, Worker(1, 2)),
        ({}, ARRAY | {"SLURM_ARRAY_TASK_ID": "4"}, Worker(3, 4)),
        ({}, ARRAY | STEP, Worker(3, 4)),
        ({}, ARRAY | STEP | TASKS, Worker(7, 8)),
        ({}, {"RANK": "2", "WORLD_SIZE": "3"} | TASKS, Worker(2, 3)),
        ({"worker": 4, "workers": 5}, {"RANK": "x"} | ARRAY, Worker(4, 5)),
        ({"workers": 1}, TASKS, Worker(0, 1)),
    ],
)
def test_fields_take_precedence_over_torchrun_and_torchrun_over_slurm(fields, environment, worker):
    assert workers.find(ExtractConfig(**fields), environment).worker == worker


def test_each_task_of_a_job_array_has_its_own_number():
    numbers = [
        workers.find(
            ExtractConfig(),
            ARRAY | TASKS | {"SLURM_ARRAY_TASK_ID": str(job), "SLURM_PROCID": str(task), "SLURM_NTASKS": "3"},
        ).worker
        for job in range(1, 5)
        for task in range(3)
    ]
    assert numbers == [Worker(number, 12) for number in range(12)]


@pytest.mark.parametrize(
    ("fields", "environment", "line"),
    [
        ({}, {}, "worker 0 of 1: this process writes the whole store"),
        ({"worker": 1, "workers": 2}, TASKS, "worker 1 of 2: set by config.extract.worker and workers"),
        ({}, {"RANK": "0", "WORLD_SIZE": "1"}, "worker 0 of 1: set by torchrun (RANK and WORLD_SIZE)"),
        (
            {},
            ARRAY | {"SLURM_ARRAY_TASK_ID": "4"},
            "worker 3 of 4: set by task 4 of the SLURM array; "
            "config.extract.workers=1 writes the whole store in this process",
        ),
        (
            {},
            TASKS | {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_ID": "7"},
            "worker 1 of 3: set by task 1 of SLURM step 7; "
            "config.extract.workers=1 writes the whole store in this process",
        ),
    ],
)
def test_the_first_line_says_who_decided(fields, environment, line):
    assert str(workers.find(ExtractConfig(**fields), environment)) == line


@pytest.mark.parametrize("step", [{}, {"SLURM_STEP_ID": "4294967291"}, {"SLURM_STEP_ID": "4294967290"}])
def test_a_batch_script_without_srun_writes_the_whole_store_and_says_so(step):
    """sbatch --ntasks=4 runs the script once, with SLURM_PROCID=0 and SLURM_NTASKS=4; the numbers are special steps."""
    batch = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", **step}
    assert str(workers.find(ExtractConfig(), batch)) == (
        "worker 0 of 1: this process writes the whole store; SLURM gave the job 4 tasks, which only srun starts"
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "3", "WORLD_SIZE": "3"}, "RANK is 3; with WORLD_SIZE=3 it must be from 0 to 2"),
        ({"RANK": "-1", "WORLD_SIZE": "3"}, "RANK is -1"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE is 0, in steps of 1; both must be at least 1"),
        ({"RANK": "first", "WORLD_SIZE": "3"}, "RANK is 'first'; it must be a whole number"),
        ({"RANK": "0"}, "WORLD_SIZE is ''"),
        ({"WORLD_SIZE": "2"}, "RANK is ''"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "2"}, "SLURM_NTASKS is ''"),
        (ARRAY, "SLURM_ARRAY_TASK_ID is 7; with SLURM_ARRAY_TASK_COUNT=4 it must be from 1 to 4"),
        (ARRAY | STEP | {"SLURM_ARRAY_TASK_ID": "4"}, "from 1 to 7 in steps of 2"),
    ],
)
def test_a_contradictory_environment_is_refused(environment, message):
    with pytest.raises(InputError, match=message):
        workers.find(ExtractConfig(), environment)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"worker": 2}, "config.extract.worker is 2; set config.extract.workers too"),
        ({"worker": 4, "workers": 4}, "config.extract.worker is 4; it must be below"),
        ({"workers": 4}, "config.extract.workers is 4; set config.extract.worker too, from 0 to 3"),
    ],
)
def test_contradictory_fields_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        ExtractConfig(**fields)


def test_workers_of_one_machine_are_spread_over_its_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [loading.device("auto", number).index for number in range(5)] == [0, 1, 2, 0, 1]
    assert loading.device("cuda:2", 1).index == 2
    with pytest.raises(InputError, match=r"config.model.device is 'cuda:3'; this machine has 3 GPUs"):
        loading.device("cuda:3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert loading.device("auto", 4) in (torch.device("cpu"), torch.device("mps"))
