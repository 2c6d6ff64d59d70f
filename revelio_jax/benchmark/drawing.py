"""Draw the missing images of a benchmark."""

import dataclasses
import itertools
import pathlib
import typing
from collections.abc import Sequence

import tqdm

from revelio_jax.benchmark.images import ImageFolder, Shot
from revelio_jax.benchmark.tasks import Task
from revelio_jax.benchmark.variants import TaskMethods, Variant
from revelio_jax.config import SteerConfig
from revelio_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Worker:
    """This process begins with every ``count``-th batch, starting at ``number``, and then draws what is missing."""

    number: int
    count: int


def parse_worker(text: str | None) -> Worker | None:
    """Return the worker that a text such as 0/4 names. Raise InputError if it is malformed."""
    if not text:
        return None
    number, separator, count = text.partition("/")
    if not (separator and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise InputError(f"--worker is {text!r}; it must be NUMBER/COUNT, from 0/4 to 3/4 for four workers")
    return Worker(int(number), int(count))


def shots_of(task: Task, seeds: int) -> list[Shot]:
    """Return one shot for each prompt of a task and each seed, in the order of the prompts."""
    return [Shot(prompt, seed) for prompt in task.prompts for seed in range(seeds)]


def draw(
    methods: TaskMethods,
    variants: Sequence[Variant],
    shots: Sequence[Shot],
    folder: pathlib.Path,
    steer: SteerConfig,
    worker: Worker | None = None,
) -> int:
    """Draw the images of the variants that have no file yet, and return their number.

    A ``worker`` begins with its share of the batches. Then it draws what other workers have not finished, the last
    batches first, so that two workers seldom draw the same one. Every batch is written when it is finished. A batch
    that misses an image is drawn again as a whole, because the other images of a batch can change an image by rounding.
    """
    batches = [(variant, batch) for variant in variants for batch in _batches(shots, steer.batch_size)]
    own = batches[worker.number :: worker.count] if worker else batches
    count = _draw(methods, own, folder, steer)
    return count + (_draw(methods, batches[::-1], folder, steer) if worker else 0)


def _draw(
    methods: TaskMethods, batches: Sequence[tuple[Variant, list[Shot]]], folder: pathlib.Path, steer: SteerConfig
) -> int:
    def is_missing(item: tuple[Variant, list[Shot]]) -> bool:
        variant, batch = item
        return bool(ImageFolder(folder, variant.key).missing(batch))

    count, batches = 0, list(filter(is_missing, batches))
    total = sum(len(batch) for _, batch in batches)
    with tqdm.tqdm(total=total, unit="image", disable=None if total else True) as progress:
        for variant, group in itertools.groupby(batches, key=lambda item: item[0]):
            progress.set_description(f"{variant.method.text} {variant.strength or ''}".strip())
            images = ImageFolder(folder, variant.key)
            left = filter(is_missing, group)  # another worker may have drawn them since
            if (first := next(left, None)) is None:
                continue
            with methods.open(variant) as sampler:
                for _, batch in itertools.chain([first], left):
                    sampled = sampler(
                        [shot.prompt.prompt for shot in batch],
                        [shot.total_seed for shot in batch],
                        steps=steer.steps,
                        guidance=[shot.prompt.guidance for shot in batch],
                        height=batch[0].prompt.height,
                        width=batch[0].prompt.width,
                        batch_size=steer.batch_size,
                        progress=progress,
                    )
                    missing = images.missing(batch)  # other images are of an earlier task or call
                    for shot, pixels, flag in zip(batch, sampled.images, sampled.flagged, strict=True):
                        if shot in missing:
                            images.write(shot, pixels, bool(flag))
                    count += len(batch)
    return count


def _batches(shots: Sequence[Shot], size: int) -> list[list[Shot]]:
    """Split shots into batches of one image size and guidance scale."""
    groups: dict[tuple[typing.Any, ...], list[Shot]] = {}
    for shot in shots:
        groups.setdefault((shot.prompt.height, shot.prompt.width, shot.prompt.guidance), []).append(shot)
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]
