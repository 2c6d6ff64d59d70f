"""The finished measurements of revelio benchmark, so that a stopped command continues.

runs/<name>/steering/table_progress.jsonl has a first line with everything that determines the measurements, then one
line per measurement. The command removes the file when the table is written.
"""

import dataclasses
import json
import pathlib
import typing
from collections.abc import Callable

import numpy as np

from revelio_jax import checksums, files
from revelio_jax.benchmark.measurement import FIGURES, Outcome

NAME = "table_progress.jsonl"


class Progress:
    """The measurements of one benchmark by their keys.

    A file of other ``settings`` is replaced. Lines that are incomplete or do not match their checksum are ignored.
    Raise InputError if the file cannot be read or written.
    """

    def __init__(self, folder: pathlib.Path, settings: dict[str, typing.Any]):
        self._path = folder / NAME
        self._outcomes: dict[str, dict[str, typing.Any]] = {}
        content = self._path.read_bytes() if self._path.exists() else b""
        head, *lines = [_parse(line) for line in content.splitlines()] or [{}]
        if head == json.loads(json.dumps(settings)):
            self._outcomes = {line["key"]: line["outcome"] for line in lines if line}
        else:
            files.write_text(self._path, json.dumps(checksums.sealed(settings)) + "\n")
        self.reused = 0

    def outcome(self, key: tuple[typing.Any, ...], measure: Callable[[], Outcome]) -> tuple[Outcome, bool]:
        """Return the outcome of a measurement, and whether it is from the file. Measure and append it otherwise."""
        name = json.dumps(key)
        if saved := self._outcomes.get(name):
            self.reused += 1
            return Outcome(**{figure: np.array(saved[figure], float) for figure in FIGURES}), True
        outcome = measure()
        values = {figure: array.tolist() for figure, array in dataclasses.asdict(outcome).items()}
        files.append_line(self._path, json.dumps(checksums.sealed({"key": name, "outcome": values})))
        return outcome, False

    def remove(self) -> None:
        """Remove the file, because all measurements are in the table."""
        self._path.unlink(missing_ok=True)


def _parse(line: bytes) -> dict[str, typing.Any]:
    """Return the object in a line, or {} if it is incomplete or damaged."""
    try:
        content = json.loads(line)
        return checksums.unsealed(content) if checksums.FIELD in content else {}
    except (ValueError, TypeError, AttributeError):
        return {}
