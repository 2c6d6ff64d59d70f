"""Rewrite the report of a run from the results of revelio interpret.

    revelio report --config mini_sd --compare runs/mini_sd_k10

Use it to add tags, to change the size of the thumbnails, or to compare with another SAE. Thumbnails of the old report
are reused if their size is the same.
"""

import pathlib
from collections.abc import Sequence

from revelio_jax import run_folders
from revelio_jax.cli import parse
from revelio_jax.errors import InputError
from revelio_jax.interpret.latents import results
from revelio_jax.interpret.latents.results import REUSED
from revelio_jax.interpret.report import write

FLAGS = {"compare": ((), "folder of a run to compare with, or of its neurons; may be repeated")}


def main(argv: Sequence[str]) -> None:
    """Run ``revelio report`` with the arguments ``argv``."""
    config, flags = parse(["revelio_jax.interpret.report", *argv], __doc__, **FLAGS)
    if not config.run:
        raise InputError("config.run is not set; set it to the folder of the run, for example runs/mini_sd")
    config = run_folders.with_local_run(config, *REUSED)
    ours = results.load(results.folder_of(config.run or "", config.interpret.sae))
    compare = [results.load(_results(folder)) for folder in flags["compare"]]
    folder = write(config, ours, compare)
    run_folders.push(folder.parent)
    print(f"report: {run_folders.location(folder / 'index.html')}")


def _results(folder: str) -> pathlib.Path:
    """Return the results folder of a run. Return a results folder, for example runs/mini_sd/neurons, unchanged."""
    path = pathlib.Path(folder)
    return path if (path / "summary.json").is_file() else results.folder_of(folder)
