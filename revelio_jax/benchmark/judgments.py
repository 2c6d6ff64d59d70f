"""The labels that a judge gives to the images of a benchmark, saved so that each image is judged once.

runs/<name>/benchmark/judgments/<key of the judge>.jsonl has a line for each batch of images of a variant. Lines that
are incomplete or do not match their checksum are ignored.
"""

import json
import pathlib
import typing
from collections.abc import Sequence

import numpy as np
import tqdm

from revelio_jax import checksums, file_locks, files
from revelio_jax.benchmark.images import ImageFolder, Shot, key_of
from revelio_jax.benchmark.judgment import Judge

BATCH = 256  # images


class Judgments:
    """The judge's answers about images, by variant and file name. An answer is None if the image was flagged."""

    def __init__(self, folder: pathlib.Path, judge: Judge):
        self._judge = judge
        self._path = folder / f"{key_of(judge.record)}.jsonl"
        self._labels: dict[str, dict[str, dict[str, str] | None]] = {}
        self._read = 0  # bytes

    def labels(self, images: ImageFolder, shots: Sequence[Shot]) -> list[dict[str, str] | None]:
        """Return the labels of each image by column, or None for a flagged image. Judge those that have none yet.

        Wait while another process judges, so that workers do not judge the same images.
        """
        with file_locks.waiting(self._path):
            return self._labels_of(images, shots)

    def _labels_of(self, images: ImageFolder, shots: Sequence[Shot]) -> list[dict[str, str] | None]:
        self._read_new_lines()
        known = self._labels.setdefault(images.path.name, {})
        groups: dict[tuple[int, int], list[Shot]] = {}
        for shot in {shot.file_name: shot for shot in shots if shot.file_name not in known}.values():
            groups.setdefault((shot.prompt.height, shot.prompt.width), []).append(shot)
        for group in groups.values():
            for start in tqdm.trange(0, len(group), BATCH, desc="judging", unit="batch", leave=False):
                self._judge_batch(images, group[start : start + BATCH], known)
        return [known[shot.file_name] for shot in shots]

    def _read_new_lines(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        self._read += len(text)
        for line in text.splitlines():
            if content := checksums.line(line):
                self._labels.setdefault(content["variant"], {}).update(content["labels"])

    def _judge_batch(self, images: ImageFolder, batch: list[Shot], known: dict[str, dict[str, str] | None]) -> None:
        read = [images.read(shot) for shot in batch]
        judged = iter(self._judge.judge(np.stack(pixels)) if (pixels := [p for p, flag in read if not flag]) else [])
        labels = {
            shot.file_name: None if flag else dict(next(judged).labels)
            for shot, (_, flag) in zip(batch, read, strict=True)
        }
        known |= labels
        line: dict[str, typing.Any] = {"variant": images.path.name, "labels": labels}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        files.append_line(self._path, json.dumps(checksums.sealed(line)))
