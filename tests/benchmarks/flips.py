"""Flip one random byte of a random file, read the file as the commands do, and compare with the intact files.

    python tests/benchmarks/flips.py --flips 200 --json flips.jsonl

Prints one JSON line per kind of file:

    files       the kind of files
    tried       flips
    reported    flips that ended with one line: an error, or the older checkpoint that is used instead
    same        flips after which the result was the same, for example in padding or in a file that is not read
    wrong       flips after which the result was another one without a line; `faults` names them
    traceback   flips that ended with an exception that is not one line; `faults` names them

config.json, metrics.jsonl, evaluation.json and the results of steer, sweep and benchmark are plain text without a
checksum, which users may edit; they are left out.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import random
import sys
import tempfile
import typing
from collections.abc import Callable

import kills

SITE = "clip.layer.2"
Reader = Callable[[], typing.Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=200, help="flips of each kind of file (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the flips (default: %(default)s)")
    parser.add_argument("--json", type=pathlib.Path, help="file to which the lines are appended")
    arguments = parser.parse_args()
    os.chdir(kills.ROOT)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    bad = 0
    with tempfile.TemporaryDirectory(prefix="flips-") as folder:
        work = kills.Workplace(pathlib.Path(folder), pathlib.Path(), "")
        work.prepare("report")
        for name, (patterns, reader) in readers(work).items():
            row = measure(work.out, name, patterns, reader, arguments.flips, random.Random(f"{name} {arguments.seed}"))
            bad += row["wrong"] + row["traceback"]
            print(json.dumps(row), flush=True)
            if arguments.json:
                with arguments.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    sys.exit(1 if bad else 0)


def readers(work: kills.Workplace) -> dict[str, tuple[tuple[str, ...], Reader]]:
    """Return, by kind, the patterns of the files and a function that reads all of them."""
    import numpy as np

    from revelio_jax.cli import parse
    from revelio_jax.errors import InputError
    from revelio_jax.interpret.latents import results
    from revelio_jax.sae_folder.reader import read_folder
    from revelio_jax.store import check, layout, open_store, writer
    from revelio_jax.training.run import restore_run

    config, _ = parse(["flips", *work.arguments("evaluate")], "")
    intact_plan: list[typing.Any] = []
    store, run = str(work.out / "store"), work.out / "run"

    def read_store() -> typing.Any:
        opened = open_store(store)
        site = opened.site(SITE)
        indices = [site.read_index(name, *chunk) for name in layout.INDEX_ARRAYS for chunk in site.chunks]
        arrays = [np.concatenate([site.read(*chunk) for chunk in site.chunks]), *indices, site.mean, site.variance]
        return opened.samples, opened.fingerprint, [array.tobytes() for array in arrays]

    def read_unfinished() -> typing.Any:
        state = check.read_state(store)
        if intact_plan and (fields := writer.difference(state.plan, intact_plan[0])):  # as a resumed extraction checks
            raise InputError(fields)
        intact_plan.append(state.plan)
        return state.plan, [layout.read_marker(state.kvstore, shard) for shard in range(state.shards)]

    def read_run() -> typing.Any:
        restored = restore_run(config)
        params = {name: np.asarray(value).tobytes() for name, value in restored.state.params.items()}
        values = [np.asarray(value).tobytes() for value in (restored.state.mean_D, restored.state.scale)]
        return int(restored.state.step), restored.rows, params, values

    def read_sae() -> typing.Any:
        content = read_folder(run / "export")
        arrays = [content.W_enc_DF, content.b_enc_F, content.W_dec_FD, content.b_dec_D]
        used = [content.metadata.get(name) for name in ("site", "value")]
        return content.architecture, content.k, used, [array.tobytes() for array in arrays]

    def read_results() -> typing.Any:
        read = results.load(run / "latents")
        names = "histogram", "profile", "coactive", "coactive_score", "nearest", "nearest_cosine", "drawn", "fires"
        return read.summary, read.latents, read.strata, read.samples, [read.array(name).tobytes() for name in names]

    return {
        "shards": (("store/*/*/c/*", "store/*/*/c/*/*"), read_store),
        "zarr.json": (("store/*/*/zarr.json",), read_store),
        "manifest.json": (("store/manifest.json",), read_store),
        "samples.parquet": (("store/samples.parquet",), read_store),
        "plan.json and markers": (("store/plan.json", "store/shards/*.json"), read_unfinished),
        "checkpoint": (("run/checkpoints/60/**/*",), read_run),
        "SAE folder": (("run/export/sae_weights.safetensors", "run/export/cfg.json"), read_sae),
        "latents": (("run/latents/*",), read_results),
    }


def measure(
    out: pathlib.Path, name: str, patterns: tuple[str, ...], reader: Reader, flips: int, chance: random.Random
) -> dict[str, typing.Any]:
    """Flip ``flips`` bytes, one at a time, and count the outcomes."""
    from revelio_jax.errors import EnvironmentFailure, InputError

    paths = sorted({path for pattern in patterns for path in out.glob(pattern) if path.is_file()})
    paths = [path for path in paths if path.stat().st_size]
    row: dict[str, typing.Any] = {"files": name, "tried": 0, "reported": 0, "same": 0, "wrong": 0, "traceback": 0}
    row["faults"] = []
    intact = reader()
    for _ in range(flips):
        path = chance.choice(paths)
        data = path.read_bytes()
        place, change = chance.randrange(len(data)), chance.randrange(1, 256)
        path.write_bytes(data[:place] + bytes([data[place] ^ change]) + data[place + 1 :])
        lines, fault = io.StringIO(), ""
        try:
            with contextlib.redirect_stderr(lines):
                outcome = "same" if reader() == intact else "wrong"
            if outcome == "wrong" and lines.getvalue().count("\n") == 1 and "is used instead" in lines.getvalue():
                outcome = "reported"
        except (InputError, EnvironmentFailure):
            outcome = "reported"  # report_errors prints it as one line
        except Exception as error:
            outcome, fault = "traceback", repr(error)[:200]
        row["tried"] += 1
        row[outcome] += 1
        if outcome in ("wrong", "traceback"):
            row["faults"].append(f"{path.relative_to(out)} byte {place}: {fault}")
        path.write_bytes(data)
    return row


if __name__ == "__main__":
    main()
