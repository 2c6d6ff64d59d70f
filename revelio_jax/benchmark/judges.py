"""Load the judge of a config, a model that labels images so that the effect of steering can be measured."""

import pathlib

from revelio_jax import shipped
from revelio_jax.benchmark import miniature_judge
from revelio_jax.benchmark.measurement import Judge
from revelio_jax.errors import InputError


def load_judge(folder: str | None) -> Judge:
    """Load the miniatures' judge from config.steer.judge. Raise InputError if it is not a folder of a judge."""
    if not folder:
        raise InputError("config.steer.judge is not set; it must be the folder of a judge")
    path = pathlib.Path(shipped.locate(folder))
    if not (path / miniature_judge.WEIGHTS).is_file():
        raise InputError(f"config.steer.judge is {folder!r}; it must be a folder with {miniature_judge.WEIGHTS}")
    return miniature_judge.load(path)
