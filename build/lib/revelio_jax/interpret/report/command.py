"""Write the report of a run again, from the results of python -m revelio_jax.interpret alone.

    python -m revelio_jax.interpret.report --config configs/mini_sd.py --compare runs/mini_sd_k10

For when tags have come, pictures shall be of another size, or another SAE be set beside this one. Pictures
that fit are taken over from the report that is there.
"""

import pathlib
from collections.abc import Sequence

from revelio_jax.cli import parse
from revelio_jax.errors import InputError
from revelio_jax.interpret.latents import results
from revelio_jax.interpret.report import write

FLAGS = {"compare": ((), "run to compare with, or its folder neurons; may be given several times")}


def main(argv: Sequence[str]) -> None:
    config, flags = parse(["revelio_jax.interpret.report", *argv], __doc__, **FLAGS)
    if not config.run:
        raise InputError("config.run is empty; it names the folder of the run")
    ours = results.load(results.folder_of(config.run, config.interpret.sae))
    compare = [results.load(_results(folder)) for folder in flags["compare"]]
    folder = write(config, ours, compare)
    print(f"report: {folder / 'index.html'}")


def _results(folder: str) -> pathlib.Path:
    """The folder of a run's results; one such, as runs/mini_sd/neurons, may be given itself."""
    path = pathlib.Path(folder)
    return path if (path / "summary.json").is_file() else results.folder_of(folder)
