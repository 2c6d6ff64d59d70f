"""A vision-language model behind an OpenAI-compatible endpoint, asked one yes-or-no question about each image."""

import concurrent.futures
import dataclasses
import io
import re
import threading
import typing
from collections.abc import Sequence

import numpy as np
from PIL import Image

from revelio_jax.benchmark.judgment import DETECTED, FIELD, NO, YES, Judgment, Record, check_settings, detection
from revelio_jax.chat_endpoint import ChatEndpoint, EndpointOptions
from revelio_jax.config.endpoints import check_endpoint
from revelio_jax.config.fields import field
from revelio_jax.errors import InputError

ANSWER = "Answer yes or no, and nothing else."


@dataclasses.dataclass(frozen=True)
class VlmSettings:
    """A model at an endpoint and its question."""

    endpoint: str | None = field(None, "base URL of an OpenAI-compatible server, for example http://localhost:8000/v1")
    model: str | None = field(None, "name of the model at the endpoint")
    question: str | None = field(None, "question about an image whose answer is yes if the concept is in it")
    noun_question: str = field("Is there {} in the image?", "question about a noun, in which {} is the noun")
    otherwise: str | None = field(
        None, "yes or no: how an answer that begins with neither counts; None: end the command", choices=(YES, NO)
    )
    key: str | None = field(None, "NAME of the environment variable that holds the endpoint's key, never the key")
    max_tokens: int = field(256, "largest number of tokens in an answer", low=1)
    parallel: int = field(4, "simultaneous requests", low=1, high=256)
    timeout: float = field(120.0, "seconds until a request is abandoned and repeated", low=0.01)

    def __post_init__(self):
        """Raise InputError if endpoint, model or question is missing, or if URL, key or noun_question is malformed."""
        check_endpoint(FIELD, self.endpoint, self.key)
        for name in ("endpoint", "model", "question"):
            if not getattr(self, name):
                raise InputError(f"{FIELD}.{name} is not set; the judge vlm needs endpoint, model and question")
        if "{}" not in self.noun_question:
            raise InputError(f"{FIELD}.noun_question is {self.noun_question!r}; it must contain {{}}, the noun")


class VlmJudge:
    """A judge that sees the concept if the model answers yes. Nothing is sent before the first image."""

    columns = (DETECTED,)

    def __init__(self, values: dict[str, typing.Any]):
        self._settings = settings = check_settings(VlmSettings, values)
        self._stop = threading.Event()
        options = EndpointOptions(
            section=FIELD,
            endpoint=settings.endpoint or "",
            model=settings.model or "",
            key=settings.key,
            max_tokens=settings.max_tokens,
            timeout=settings.timeout,
        )
        self._endpoint = ChatEndpoint(options, self._stop)
        self._text = f"{settings.question} {ANSWER}"
        self.noun_record: Record = {
            "name": "vlm",
            "version": settings.model,
            "weights": None,  # only the server has them
            "question": f"{settings.noun_question} {ANSWER}",
            "otherwise": settings.otherwise,
        }
        self.record: Record = {
            "name": "vlm",
            "version": settings.model,
            "weights": None,  # only the server has them
            "threshold": None,
            "labels": [YES],
            "color_order": "RGB",
            "question": self._text,
            "otherwise": settings.otherwise,
        }

    def judge(self, pixels: np.ndarray) -> list[Judgment]:
        """Return the model's answer about each of the uint8 RGB images [N, height, width, 3].

        Raise InputError if the endpoint fails, or if an answer begins with neither yes nor no and the setting
        ``otherwise`` is not set.
        """
        answers = self._ask([(_png(image), self._text) for image in pixels])
        return [
            detection(label == YES, {YES: float(label == YES), "unclear": float(unclear)}) for label, unclear in answers
        ]

    def nouns_visible(self, pixels: np.ndarray, nouns: Sequence[Sequence[str]]) -> list[list[bool]]:
        """Return the model's answer about each noun of each of the uint8 RGB images [N, height, width, 3].

        Raise InputError as :meth:`judge`.
        """
        question = self._settings.noun_question
        asked = [
            (png, f"{question.replace('{}', noun)} {ANSWER}")
            for png, each in zip(map(_png, pixels), nouns, strict=True)
            for noun in each
        ]
        answers = iter(self._ask(asked))
        return [[next(answers)[0] == YES for _ in each] for each in nouns]

    def _ask(self, questions: list[tuple[bytes, str]]) -> list[tuple[str, bool]]:
        """Return yes or no for each image and question, and whether the answer was unclear."""
        with concurrent.futures.ThreadPoolExecutor(self._settings.parallel) as pool:
            try:
                return list(pool.map(lambda each: self._ask_one(*each), questions))
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                self._stop.clear()

    def _ask_one(self, png: bytes, text: str) -> tuple[str, bool]:
        answer = self._endpoint.ask(text, [png])
        word = re.match(r"\W*(yes|no)\b", answer, re.IGNORECASE)
        label = word[1].lower() if word else self._settings.otherwise
        if label is None:
            raise InputError(
                f"config.steer.judge is 'vlm'; the model answered {answer[:100]!r} instead of yes or no; set "
                f"{FIELD}.otherwise to count such answers"
            )
        return label, word is None


def _png(image: np.ndarray) -> bytes:
    png = io.BytesIO()
    Image.fromarray(image).save(png, "png")
    return png.getvalue()
