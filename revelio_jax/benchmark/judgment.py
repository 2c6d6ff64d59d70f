"""The protocol of judges: models that label images, so that the effect of steering can be measured.

A judge predicts label columns of the prompts, for example ``style``, or only whether an image shows one concept. Its
answer then has the single column :data:`DETECTED` with the values :data:`YES` and :data:`NO`.
"""

import json
import pathlib
import typing
from collections.abc import Sequence

import numpy as np

from revelio_jax import files, json_text
from revelio_jax.config import did_you_mean
from revelio_jax.config.schema import check_fields
from revelio_jax.errors import InputError

FIELD = "config.steer.judge_settings"
DETECTED, YES, NO = "detected", "yes", "no"

Record = dict[str, typing.Any]
"""Everything that determines the answers of a judge; results contain it.

``name``, ``version``, ``weights`` (SHA-256 of each file, by name), ``threshold``, ``labels`` (the labels that it
predicts, or that count as the concept) and ``color_order`` (in which its network receives the colors), each None if a
judge has no such thing; then its other settings and the versions of its libraries.
"""


class Judgment(typing.NamedTuple):
    """The answer of a judge about one image: the label of each of its columns, and its scores by name."""

    labels: dict[str, str]
    scores: dict[str, float]


class Judge(typing.Protocol):
    """A model that labels images. ``columns`` are the label columns that it predicts."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def record(self) -> Record: ...

    def judge(self, pixels: np.ndarray) -> list[Judgment]:
        """Return one answer for each of the uint8 RGB images [N, height, width, 3]."""
        ...


@typing.runtime_checkable
class NounJudge(typing.Protocol):
    """A model that can be asked whether any noun is visible. ``noun_record`` determines its answers, as a record."""

    @property
    def noun_record(self) -> Record: ...

    def nouns_visible(self, pixels: np.ndarray, nouns: Sequence[Sequence[str]]) -> list[list[bool]]:
        """Return an answer for each noun of each of the uint8 RGB images [N, height, width, 3]."""
        ...


def detects(judge: Judge) -> bool:
    """Return whether a judge only answers whether an image shows its concept."""
    return judge.columns == (DETECTED,)


def detection(is_seen: bool, scores: dict[str, float]) -> Judgment:
    """Return the answer of a judge that detects a concept."""
    return Judgment({DETECTED: YES if is_seen else NO}, scores)


def hashes(*paths: pathlib.Path) -> dict[str, str]:
    """Return the SHA-256 of each file by its name."""
    return {path.name: files.sha256(path) for path in paths}


def read_settings(text: str | None) -> dict[str, typing.Any]:
    """Return the settings in ``text``, a JSON object or the name of a .json file that contains one.

    Raise InputError if the file cannot be read or the JSON is malformed.
    """
    if not text:
        return {}
    is_file = text.endswith(".json")
    try:
        return json_text.parse_object(pathlib.Path(text).read_bytes() if is_file else text)
    except (OSError, ValueError) as error:
        allowed = "a JSON object or a .json file that contains one"
        raise InputError(f"{FIELD} is {text!r}; it must be {allowed}: {error}") from error


S = typing.TypeVar("S")


def check_settings(kind: type[S], values: dict[str, typing.Any]) -> S:
    """Return ``values`` as the dataclass ``kind``. Raise InputError for an unknown, missing or invalid setting."""
    return check_fields(FIELD, kind, values)


def check_known(name: str, given: typing.Iterable[str], known: typing.Iterable[str]) -> None:
    """Raise InputError if the setting ``name`` is empty or one of its texts is not in ``known``."""
    given = list(given)
    if not given:
        raise InputError(f"{FIELD}: {name} is empty; it must have at least one of: {', '.join(known)}")
    known = list(known)
    for each in given:
        if each not in known:
            raise InputError(f"{FIELD}: {name} has {json.dumps(each)}; {did_you_mean(each, known, 'allowed')}")
