"""The figures of a task's nouns: what is left of benign neighbors of the concept and of other nouns in its prompts."""

import typing
from collections.abc import Sequence

import numpy as np

from revelio_jax.benchmark import neighbors
from revelio_jax.benchmark.images import ImageFolder, Shot
from revelio_jax.benchmark.judgments import NounJudgments
from revelio_jax.benchmark.measurement import Interval
from revelio_jax.benchmark.neighbors import Harm
from revelio_jax.benchmark.tasks import ALIGNMENT, NEIGHBORS

NAMES = {"pinpointness": "pinpointness", "survival": "survival", "selective_alignment": "selective alignment"}


class NounFigures(typing.TypedDict):
    """The intervals by the names of :data:`NAMES`, and the harm to each neighbor, the largest first."""

    intervals: dict[str, Interval]
    harms: list[Harm]


def measure_nouns(
    judgments: NounJudgments, images: ImageFolder, plain: ImageFolder, shots: Sequence[Shot], seeds: int
) -> NounFigures:
    """Return the figures of a variant from its ``images`` and those of the plain pipeline.

    ``shots`` are those of the whole task, ``seeds`` for each prompt. Survival is missing if the plain pipeline shows no
    neighbor.
    """
    found: NounFigures = {"intervals": {}, "harms": []}
    if own := [shot for shot in shots if shot.prompt.role == NEIGHBORS]:
        visible_CN, plain_CN = (
            np.array(judgments.visible(each, own), bool).reshape(-1, seeds) for each in (images, plain)
        )
        found["intervals"]["pinpointness"] = neighbors.pinpointness(visible_CN)
        if plain_CN.any():
            found["intervals"]["survival"] = neighbors.survival(visible_CN, plain_CN)
        names = [shot.prompt.nouns[0] for shot in own[::seeds]]
        found["harms"] = neighbors.harms(names, visible_CN, plain_CN)
    if own := [shot for shot in shots if shot.prompt.role == ALIGNMENT]:
        answers = judgments.visible(images, own)
        per_prompt = [
            [is_visible for each in answers[first : first + seeds] for is_visible in each]
            for first in range(0, len(answers), seeds)
        ]
        found["intervals"]["selective_alignment"] = neighbors.selective_alignment(per_prompt)
    return found
