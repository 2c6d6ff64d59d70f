"""Find the miniatures and configs that ship with the package, from any working directory."""

import pathlib

from revelio_jax.config import did_you_mean
from revelio_jax.errors import InputError

HOME = pathlib.Path(__file__).resolve().parents[1]
"""The folder of the packages revelio_jax and extract: a clone, or site-packages."""
MINIATURES = pathlib.PurePath("extract", "miniature")


def locate(path: str) -> str:
    """Return ``path``, or the shipped file or folder of that name if the working directory has none.

    Configs refer to the miniatures by paths in a clone, for example extract/miniature/sd. This function makes these
    paths valid in every working directory, so stores and exports record the same model id everywhere.
    """
    if pathlib.Path(path).exists() or not pathlib.PurePath(path).is_relative_to(MINIATURES):
        return path
    shipped = HOME / path
    return str(shipped) if shipped.exists() else path


def miniature(name: str) -> str:
    """Return the folder of a miniature pipeline that ships with the package: sd or flux.

    Pass the folder to ``from_pretrained`` of the pipeline's class. Raise InputError if the name is unknown.
    """
    folders = {path.parent.name: path.parent for path in (HOME / MINIATURES).glob("*/model_index.json")}
    if name not in folders:
        raise InputError(f"unknown miniature {name!r}; allowed: {', '.join(sorted(folders))}")
    return str(folders[name])


def config_file(name: str) -> pathlib.Path:
    """Return the shipped config called ``name``, for example mini_sd. Raise InputError if it is unknown."""
    names = config_names()
    if name not in names:
        raise InputError(f"--config {name}: unknown config; {did_you_mean(name, names, 'shipped configs')}")
    return _configs() / f"{name}.py"


def config_names() -> list[str]:
    """Return the names of the shipped configs."""
    return sorted(path.stem for path in _configs().glob("*.py") if path.stem != "__init__")


def _configs() -> pathlib.Path:
    """Return the folder of configs: in the installed package, or configs/ of a clone."""
    installed = HOME / "revelio_jax" / "shipped_configs"
    return installed if installed.is_dir() else HOME / "configs"
