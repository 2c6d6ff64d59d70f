"""The judge that a config names: what labels pictures when an effect is measured."""

import pathlib

from revelio_jax.errors import InputError
from revelio_jax.steering.measure import Judge


def load_judge(folder: str) -> Judge:
    """The miniature's judge from its folder. Raises InputError where there is none."""
    from extract.miniature import judge  # only measuring needs it, steering does not

    if not (pathlib.Path(folder) / judge.WEIGHTS).is_file():
        raise InputError(f"config.steer.judge is {folder!r}: {judge.WEIGHTS} is not there")
    return judge.load(pathlib.Path(folder))
