"""A judge of the user: a function ``module:function`` that gets the images of a batch.

    def redness(pixels):  # uint8 RGB images [N, height, width, 3]
        return pixels[..., 0].mean((1, 2)) / 255

It returns one score per image, and the judge sees the concept from a threshold on. With the setting ``columns`` it
returns one dict per image instead, with the label of each of these columns. Other settings are passed as keywords.
"""

import dataclasses
import importlib
import inspect
import math
import pathlib
import sys
import traceback
import typing

import numpy as np

from revelio_jax.benchmark.judgment import DETECTED, Judgment, Record, check_settings, detection, hashes
from revelio_jax.config.fields import field
from revelio_jax.errors import InputError, first_sentence, is_out_of_memory


@dataclasses.dataclass(frozen=True)
class UserSettings:
    """The settings of a user's judge that are not passed to its function."""

    threshold: float = field(0.5, "smallest score that counts")
    columns: tuple[str, ...] = field((), "label columns that the function predicts; empty: it returns scores")


class UserJudge:
    """A judge that calls a function. Raise InputError, which names the module, if it cannot be imported."""

    def __init__(self, name: str, values: dict[str, typing.Any]):
        self._name = name
        own = {each.name for each in dataclasses.fields(UserSettings)}
        self._settings = check_settings(UserSettings, {key: value for key, value in values.items() if key in own})
        self._keywords = {key: value for key, value in values.items() if key not in own}
        self.columns = self._settings.columns or (DETECTED,)
        module, _, function = name.partition(":")
        if "" not in sys.path:
            sys.path.append("")  # a console script does not search the working directory
        try:
            self._function: typing.Any = importlib.import_module(module)
            for part in function.split("."):
                self._function = getattr(self._function, part)
        except Exception as error:
            raise self._failure(error) from error
        if not callable(self._function):
            raise InputError(
                f"config.steer.judge is {name!r}; it must be a function, not {type(self._function).__name__}"
            )
        inner = inspect.unwrap(self._function)
        source = inspect.getsourcefile(inner) if inspect.isfunction(inner) else None
        self.record: Record = {
            "name": name,
            "version": getattr(sys.modules[module], "__version__", None),
            "weights": hashes(pathlib.Path(source)) if source else None,  # of the code, not of models that it loads
            "threshold": None if self._settings.columns else self._settings.threshold,
            "labels": list(self._settings.columns) or None,
            "color_order": "RGB",
            "keywords": self._keywords,
        }

    def judge(self, pixels: np.ndarray) -> list[Judgment]:
        """Return the function's answer about each of the uint8 RGB images [N, height, width, 3].

        Raise InputError, which names the module, if the function fails or returns something else.
        """
        try:
            answers = list(self._function(pixels, **self._keywords))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise self._failure(error) from error
        if len(answers) != len(pixels):
            raise InputError(
                f"config.steer.judge is {self._name!r}, which returned {len(answers)} answers for {len(pixels)} images"
            )
        return [self._labels(each) if self._settings.columns else self._score(each) for each in answers]

    def _labels(self, answer: typing.Any) -> Judgment:
        columns = self._settings.columns
        if not isinstance(answer, dict) or not all(isinstance(answer.get(column), str) for column in columns):
            raise InputError(
                f"config.steer.judge is {self._name!r}, which returned {answer!r:.100}; it must be a dict with a text "
                f"for each of: {', '.join(columns)}"
            )
        return Judgment({column: answer[column] for column in columns}, {})

    def _score(self, answer: typing.Any) -> Judgment:
        try:
            score = float(answer)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise InputError(
                f"config.steer.judge is {self._name!r}, which returned {answer!r:.100}; it must be a finite number for "
                "each image, or a dict of labels with the setting columns"
            )
        return detection(score >= self._settings.threshold, {"score": score})

    def _failure(self, error: Exception) -> InputError:
        frames = [each for each in traceback.extract_tb(error.__traceback__) if each.filename != __file__]
        files = [each for each in frames if pathlib.Path(each.filename).is_file()]  # not those of importlib
        where = f" ({pathlib.Path(files[-1].filename).name}, line {files[-1].lineno})" if files else ""
        return InputError(
            f"config.steer.judge is {self._name!r}, which failed: {type(error).__name__}: "
            f"{first_sentence(error)}{where}"
        )
