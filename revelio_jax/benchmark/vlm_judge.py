"""A vision-language model behind an OpenAI-compatible endpoint, asked one yes-or-no question about each image."""

import concurrent.futures
import dataclasses
import io
import re
import threading
import typing

import numpy as np
from PIL import Image

from revelio_jax.benchmark.judgment import DETECTED, FIELD, NO, YES, Judgment, Record, check_settings, detection
from revelio_jax.chat_endpoint import ChatEndpoint, EndpointOptions
from revelio_jax.config.endpoints import check_endpoint
from revelio_jax.config.fields import field
from revelio_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class VlmSettings:
    """A model at an endpoint and its question."""

    endpoint: str | None = field(None, "base URL of an OpenAI-compatible server, for example http://localhost:8000/v1")
    model: str | None = field(None, "name of the model at the endpoint")
    question: str | None = field(None, "question about an image whose answer is yes if the concept is in it")
    otherwise: str | None = field(
        None, "yes or no: how an answer that begins with neither counts; None: end the command", choices=(YES, NO)
    )
    key: str | None = field(None, "NAME of the environment variable that holds the endpoint's key, never the key")
    max_tokens: int = field(256, "largest number of tokens in an answer", low=1)
    parallel: int = field(4, "simultaneous requests", low=1, high=256)
    timeout: float = field(120.0, "seconds until a request is abandoned and repeated", low=0.01)

    def __post_init__(self):
        """Raise InputError if the endpoint, the model or the question is missing, or the URL or key is malformed."""
        check_endpoint(FIELD, self.endpoint, self.key)
        for name in ("endpoint", "model", "question"):
            if not getattr(self, name):
                raise InputError(f"{FIELD}.{name} is not set; the judge vlm needs endpoint, model and question")


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
        self._text = f"{settings.question} Answer yes or no, and nothing else."
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
        with concurrent.futures.ThreadPoolExecutor(self._settings.parallel) as pool:
            try:
                return list(pool.map(self._judge_one, pixels))
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                self._stop.clear()

    def _judge_one(self, image: np.ndarray) -> Judgment:
        png = io.BytesIO()
        Image.fromarray(image).save(png, "png")
        answer = self._endpoint.ask(self._text, [png.getvalue()])
        word = re.match(r"\W*(yes|no)\b", answer, re.IGNORECASE)
        label = word[1].lower() if word else self._settings.otherwise
        if label is None:
            raise InputError(
                f"config.steer.judge is 'vlm'; the model answered {answer[:100]!r} instead of yes or no; set "
                f"{FIELD}.otherwise to count such answers"
            )
        return detection(label == YES, {YES: float(label == YES), "unclear": float(word is None)})
