"""Arguments of commands that take folders of runs in place of a config, and where they write."""

import argparse
import pathlib
import typing
from collections.abc import Sequence

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
    """What --out names, else ``name`` in the run's folder, or beside the first of several."""
    first = pathlib.Path(runs[0])
    out = given or (first if len(runs) == 1 else first.absolute().parent) / name
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out is {out}; it must be a file in a folder that is there")
    return out
