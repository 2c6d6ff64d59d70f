"""Every answer that a model gave, kept at once, so that nothing is asked twice.

runs/<name>/tags_cache.jsonl has a line an answer: key, model, latent, kind, answer. It stands beside the
results, which interpreting anew replaces; where that finds the same samples, the answers still hold.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import threading
import typing
from collections.abc import Callable

from revelio_jax.errors import InputError
from revelio_jax.interpret.tags.questions import VERSION, Question

NAME = "tags_cache.jsonl"


class Stopped(Exception):
    """The run is ending: what is still to be asked is not asked."""


@dataclasses.dataclass(frozen=True)
class VisionLanguageModel:
    """Who is asked.

    ``name`` is what tags bear; ``identity`` tells models apart whose answers may differ; ``ask`` gives the
    answer to a question, and may be called by ``parallel`` threads at a time.
    """

    name: str
    identity: str
    ask: Callable[[Question], str]
    parallel: int = 1


class Answers:
    """The answers of a model, from the file or else from itself. Threads may share it.

    ``asked`` and ``found`` count answers of the one and of the other.
    """

    def __init__(self, path: pathlib.Path, model: VisionLanguageModel, stop: threading.Event):
        self.asked = self.found = 0
        self._path, self._model, self._stop = path, model, stop
        self._lock = threading.Lock()
        self._known = _read(path)

    def ask(self, question: Question, latent: int) -> str:
        """Raises InputError where the model cannot be asked, Stopped after stop."""
        key = _key(self._model.identity, question)
        with self._lock:
            if key in self._known:
                self.found += 1
                return self._known[key]
        if self._stop.is_set():
            raise Stopped
        answer = self._model.ask(question)
        line = {
            "key": key,
            "model": self._model.name,
            "latent": latent,
            "kind": question.kind,
            "answer": answer,
        }
        with self._lock:
            self._append(line)
            self._known[key] = answer
            self.asked += 1
        return answer

    def _append(self, line: dict[str, typing.Any]) -> None:
        try:
            with open(self._path, "ab+") as file:
                if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                    file.write(b"\n")  # after a line that was torn
                file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            raise InputError(f"{self._path} cannot be written: {error}") from error


def _key(identity: str, question: Question) -> str:
    pictures = [hashlib.sha256(picture).hexdigest() for picture in question.pictures]
    whole = json.dumps([VERSION, identity, question.kind, question.text, pictures])
    return hashlib.sha256(whole.encode()).hexdigest()


def _read(path: pathlib.Path) -> dict[str, str]:
    """Key -> answer; a line that is none, such as a torn last one, is passed over."""
    known: dict[str, str] = {}
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for line in lines:
        try:
            row = json.loads(line)
            if isinstance(row["key"], str) and isinstance(row["answer"], str):
                known[row["key"]] = row["answer"]
        except (ValueError, KeyError, TypeError):
            continue
    return known
