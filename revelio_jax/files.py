"""Arguments of commands that take folders of runs in place of a config, and where they write."""

import argparse
import contextlib
import os
import pathlib
import typing
from collections.abc import Iterator, Sequence

from revelio_jax.errors import InputError


class Parser(argparse.ArgumentParser):
    """Has ``runs`` and ``--out``; what is wrong raises InputError."""

    def __init__(self, module: str, doc: str, writes: str):
        super().__init__(
            f"python -m {module}",
            description=doc,
            formatter_class=argparse.RawTextHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("runs", nargs="+", help="folders of runs")
        self.add_argument("--out", help=f"{writes} to write", type=pathlib.Path)

    def error(self, message: str) -> typing.NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def out_of(given: pathlib.Path | None, runs: Sequence[str], name: str) -> pathlib.Path:
    """What --out names, else ``name`` in the run's folder, or beside the first of several.

    Raises InputError where nothing could be written there, before the work is done.
    """
    first, suffix = pathlib.Path(runs[0]), pathlib.Path(name).suffix
    out = given or (first if len(runs) == 1 else first.absolute().parent) / name
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out is {out}; it must be a file in a folder that is there")
    if out.suffix != suffix:
        raise InputError(f"--out is {out}; it must end in {suffix}")
    try:
        _part(out).touch()
        _part(out).unlink()
    except OSError as error:
        raise InputError(f"--out is {out}, which cannot be written: {error.strerror or error}") from error
    return out


@contextlib.contextmanager
def replaced(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file beside ``path`` that takes its place after the block. Raises InputError where it cannot."""
    part = _part(path)
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def _part(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".part")
