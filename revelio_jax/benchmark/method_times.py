"""The time of each method of a benchmark, paired with the plain pipeline, saved so that each is measured once."""

import contextlib
import functools
import json
import pathlib
import platform
import typing
from collections.abc import Callable, Generator, Sequence

import torch

from revelio_jax import checksums, files
from revelio_jax.baselines import counted
from revelio_jax.baselines.sampler import Sampler
from revelio_jax.benchmark.images import Shot
from revelio_jax.benchmark.timing import paired_times, peak_memory
from revelio_jax.benchmark.variants import TaskMethods, Variant
from revelio_jax.config import SteerConfig
from revelio_jax.pipelines.sampling import sample


class MethodTime(typing.TypedDict):
    """The time of a method: see :class:`revelio_jax.benchmark.timing.PairedTimes` and ``Evaluations``.

    ``evaluations`` are denoiser evaluations per image, with and without a gradient; None if they are not counted.
    """

    plain_s: float
    method_s: float
    ratio: dict[str, float]
    repetitions: int
    images: int
    evaluations: tuple[float, float] | None
    peak_bytes: int | None
    peak_kind: str
    machine: dict[str, typing.Any]


def machine(device: torch.device) -> dict[str, typing.Any]:
    """Return the machine that a time belongs to."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def time_methods(
    methods: TaskMethods,
    variants: Sequence[Variant],
    shots: Sequence[Shot],
    pipe: typing.Any,
    steer: SteerConfig,
    repetitions: int,
    file: pathlib.Path,
) -> dict[str, MethodTime]:
    """Return the time of each variant by its key. Times that ``file`` has for this machine are not measured again.

    A repetition samples one batch of the first ``shots`` with the plain pipeline, and then with the method.
    """
    device = torch.device(pipe._execution_device)
    here = machine(device)
    known: dict[str, MethodTime] = {}
    for line in file.read_bytes().splitlines() if file.exists() else []:
        content = checksums.line(line)
        if content and content["machine"] == here and content["repetitions"] >= repetitions:
            known[content.pop("key")] = typing.cast(MethodTime, content)
    size = shots[0].prompt.height, shots[0].prompt.width
    batch = [shot for shot in shots if (shot.prompt.height, shot.prompt.width) == size][: steer.batch_size]
    for variant in variants:
        if variant.key in known:
            continue
        measured = _time(methods, variant, batch, pipe, steer, repetitions, device)
        known[variant.key] = measured
        file.parent.mkdir(parents=True, exist_ok=True)
        files.append_line(file, json.dumps(checksums.sealed({"key": variant.key, **measured})))
    return {variant.key: known[variant.key] for variant in variants}


def _time(
    methods: TaskMethods,
    variant: Variant,
    batch: list[Shot],
    pipe: typing.Any,
    steer: SteerConfig,
    repetitions: int,
    device: torch.device,
) -> MethodTime:
    def run(sampler: Sampler, number: int) -> None:
        sampler(
            [shot.prompt.prompt for shot in batch],
            [shot.total_seed + number for shot in batch],
            steps=steer.steps,
            guidance=[shot.prompt.guidance for shot in batch],
            height=batch[0].prompt.height,
            width=batch[0].prompt.width,
            batch_size=steer.batch_size,
        )

    @contextlib.contextmanager
    def opened() -> Generator[Callable[[int], object]]:
        with methods.open(variant) as sampler:
            yield functools.partial(run, sampler)

    with opened() as sample_batch:  # also the warm-up
        with counted(pipe) as evaluations:
            sample_batch(0)
        with peak_memory(device) as peak:
            sample_batch(0)
    plain = functools.partial(run, functools.partial(sample, pipe))
    summary = paired_times(plain, opened, len(batch), repetitions, warmup=1, device=device).summary()
    is_counted = variant.method.name != "technique"  # samples with a pipeline of its own
    measured: dict[str, typing.Any] = {
        **summary,
        "images": len(batch),
        "evaluations": evaluations.per_image(len(batch)) if is_counted else None,
        "peak_bytes": peak.bytes,
        "peak_kind": peak.kind,
        "machine": machine(device),
    }
    return typing.cast(MethodTime, measured)
