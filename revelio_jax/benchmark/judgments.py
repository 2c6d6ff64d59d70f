"""The answers of a judge to the images of a benchmark, saved so that each image is judged once.

runs/<name>/benchmark/judgments/<key of the judge>.jsonl    labels
runs/<name>/benchmark/nouns/<key of the judge>.jsonl        which nouns of its prompt an image shows
"""

import pathlib
from collections.abc import Sequence

from revelio_jax.benchmark.image_values import ImageValues
from revelio_jax.benchmark.images import ImageFolder, Shot, key_of
from revelio_jax.benchmark.judgment import Judge, NounJudge


class Judgments:
    """The judge's answers about images, by variant and file name. An answer is None if the image was flagged."""

    def __init__(self, folder: pathlib.Path, judge: Judge):
        self._judge = judge
        self._values = ImageValues(folder / f"{key_of(judge.record)}.jsonl", "labels")

    def labels(self, images: ImageFolder, shots: Sequence[Shot]) -> list[dict[str, str] | None]:
        """Return the labels of each image by column, or None for a flagged image. Judge those that have none yet."""
        return self._values.of(
            images, shots, lambda _, pixels: [dict(each.labels) for each in self._judge.judge(pixels)]
        )


class NounJudgments:
    """The judge's answers about the nouns of the images' prompts."""

    def __init__(self, folder: pathlib.Path, judge: NounJudge):
        self._judge = judge
        self._values = ImageValues(folder / f"{key_of(judge.noun_record)}.jsonl", "nouns")

    def visible(self, images: ImageFolder, shots: Sequence[Shot]) -> list[list[bool]]:
        """Return whether each noun of its prompt is visible in each image. A flagged image shows none of them."""
        found = self._values.of(
            images,
            shots,
            lambda own, pixels: self._judge.nouns_visible(pixels, [shot.prompt.nouns for shot in own]),
            key=lambda shot: key_of({"file": shot.file_name, "nouns": shot.prompt.nouns}),
        )
        return [
            [False] * len(shot.prompt.nouns) if answers is None else answers
            for shot, answers in zip(shots, found, strict=True)
        ]
