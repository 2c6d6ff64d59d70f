"""The judge that a config names: what labels pictures when an effect is measured."""

import pathlib

from revelio_jax import shipped
from revelio_jax.benchmark import miniature_judge
from revelio_jax.benchmark.measurement import Judge
from revelio_jax.errors import InputError


def load_judge(folder: str) -> Judge:
    """The miniature's judge from its folder. Raises InputError where there is none."""
    path = pathlib.Path(shipped.locate(folder))
    if not (path / miniature_judge.WEIGHTS).is_file():
        raise InputError(f"config.steer.judge is {folder!r}: {miniature_judge.WEIGHTS} is not there")
    return miniature_judge.load(path)
