"""Cache the model's answers on disk, so that no question is sent twice.

runs/<name>/tags_cache.jsonl has one line per answer: key, model, latent, kind, answer. It is outside of the results
folder, because a new interpretation replaces that folder. Cached answers stay valid while the questions are the same.
"""

import dataclasses
import hashlib
import json
import pathlib
import threading
from collections.abc import Callable

from revelio_jax import files
from revelio_jax.chat_endpoint import RunStopped
from revelio_jax.errors import InputError
from revelio_jax.interpret.tags.questions import VERSION, Question

NAME = "tags_cache.jsonl"


@dataclasses.dataclass(frozen=True)
class VisionLanguageModel:
    """A model that answers questions.

    ``name`` is written into the tags. ``identity`` is part of the cache key; models with different answers have
    different identities. ``ask`` returns the answer to a question; ``parallel`` threads may call it at once.
    """

    name: str
    identity: str
    ask: Callable[[Question], str]
    parallel: int = 1


class AnswerCache:
    """The answers of a model, read from the cache or else requested from the model and appended. Thread-safe.

    ``requested`` counts answers of the model, ``reused`` counts answers of the cache.
    """

    def __init__(self, path: pathlib.Path, model: VisionLanguageModel, stop: threading.Event):
        self.requested = self.reused = 0
        self._path, self._model, self._stop = path, model, stop
        self._lock = threading.Lock()
        self._answers = _read(path)

    def ask(self, question: Question, latent: int) -> str:
        """Return the answer. Raise InputError if the model fails, and RunStopped if the run is stopping."""
        key = _key(self._model.identity, question)
        with self._lock:
            if key in self._answers:
                self.reused += 1
                return self._answers[key]
        if self._stop.is_set():
            raise RunStopped
        answer = self._model.ask(question)
        line = {
            "key": key,
            "model": self._model.name,
            "latent": latent,
            "kind": question.kind,
            "answer": answer,
        }
        with self._lock:
            files.append_line(self._path, json.dumps(line))
            self._answers[key] = answer
            self.requested += 1
        return answer


def _key(identity: str, question: Question) -> str:
    images = [hashlib.sha256(image).hexdigest() for image in question.images]
    whole = json.dumps([VERSION, identity, question.kind, question.text, images])
    return hashlib.sha256(whole.encode()).hexdigest()


def _read(path: pathlib.Path) -> dict[str, str]:
    """Return the answers by key. Skip malformed lines, because a crash can truncate the last one."""
    answers: dict[str, str] = {}
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for line in lines:
        try:
            row = json.loads(line)
            if isinstance(row["key"], str) and isinstance(row["answer"], str):
                answers[row["key"]] = row["answer"]
        except (ValueError, KeyError, TypeError):
            continue
    return answers
