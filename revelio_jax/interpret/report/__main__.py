"""Write the report of a run again, from the results of python -m revelio_jax.interpret alone.

    python -m revelio_jax.interpret.report --config configs/mini_sd.py --compare runs/mini_sd_k10

For when tags have come, pictures shall be of another size, or another SAE be set beside this one. Pictures
that fit are taken over from the report that is there.
"""

from revelio_jax.command import main_argv, parse
from revelio_jax.errors import InputError, reported
from revelio_jax.interpret import results
from revelio_jax.interpret.report import write

FLAGS = {"compare": ((), "folder of a run whose latents are compared with; may be given several times")}


def main() -> None:
    config, flags = parse(main_argv("revelio_jax.interpret.report"), __doc__, **FLAGS)
    if not config.train.run:
        raise InputError("config.train.run is empty; it names the folder of the run")
    ours = results.load(results.folder_of(config.train.run))
    compare = [results.load(results.folder_of(run)) for run in flags["compare"]]
    folder = write(config, ours, compare)
    print(f"report: {folder / 'index.html'}")


if __name__ == "__main__":
    with reported():
        main()
