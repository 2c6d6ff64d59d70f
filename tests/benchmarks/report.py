"""Measure the report of a large SAE: time to write, size, and what a browser loads.

    python tests/benchmarks/report.py --json report.json
    python tests/benchmarks/report.py --json report.json --latents 65536 --samples 20000 --kind text

The results are synthetic, with the default number of samples per latent, five timesteps and maps of 16 x 16. The
store's images are 256 pixels of noise, which no format compresses well. ``seconds`` is the time to write the report,
``cpu_seconds`` the CPU time of all threads, ``peak_gib`` the largest resident memory of a process that does nothing
else. ``first_kb`` is what Chromium loads of each page before any scrolling, searching or sorting, from a web server
without compression.
"""

import argparse
import dataclasses
import json
import multiprocessing
import pathlib
import resource
import tempfile
import time

import numpy as np
import PIL.Image
import results as result_file

from revelio_jax.config import Config, InterpretConfig
from revelio_jax.interpret import report
from revelio_jax.interpret.latents import results
from tests.helpers import browser, planted
from tests.helpers.edits import edit_sealed

DEFAULTS = InterpretConfig()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", metavar="FILE", help="file to write the row to")
    parser.add_argument("--kind", choices=("image", "text"), default="image", help="samples (default: %(default)s)")
    parser.add_argument("--latents", type=int, default=65_536, help="latents of the SAE (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=10_000, help="samples of the store (default: %(default)s)")
    parser.add_argument("--folder", help="folder for the run (default: a temporary folder)")
    options = parser.parse_args()
    result_file.check(options.json)
    with tempfile.TemporaryDirectory() as temporary:
        row = measure(pathlib.Path(options.folder or temporary), options)
    result_file.write(options.json, [row])
    print(json.dumps(row))


def measure(folder: pathlib.Path, options: argparse.Namespace) -> dict:
    """Write a report and return the row."""
    process = multiprocessing.get_context("spawn").Process(target=_write_results, args=(folder, options))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)
    loaded = results.load(results.folder_of(str(folder / "run")))
    config = dataclasses.replace(Config(), run=str(folder / "run"))
    started, cpu = time.perf_counter(), time.process_time()
    written = report.write(config, loaded)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    files = [file for file in written.rglob("*") if file.is_file()]
    return {
        "kind": options.kind,
        "latents": options.latents,
        "samples": options.samples,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "files": len(files),
        "mb": round(sum(file.stat().st_size for file in files) / 1e6, 1),
        "images_mb": round(sum(f.stat().st_size for f in files if f.suffix == ".webp") / 1e6, 1),
        "peak_gib": round(peak, 2),
        "first_kb": browser.first_loads(written, ("index.html", "latents.html", f"latent.html#{options.latents // 2}")),
    }


def _write_results(folder: pathlib.Path, options: argparse.Namespace) -> None:
    size = planted.Size(
        options.latents,
        options.samples,
        DEFAULTS.top,
        DEFAULTS.weaker,
        DEFAULTS.top,
        DEFAULTS.neighbors,
        16,
        77,
        pixels=256,
    )
    store = planted.make_store(folder / "store", options.kind, size, _prompts(), images=False)
    if options.kind == "image":
        _add_images(folder / "store", size)
    planted.make(folder / "run", store, options.kind, size)


def _prompts() -> list[str]:
    """Return 997 prompts of 30 words."""
    random = np.random.default_rng(0)
    return [" ".join(random.choice(planted.WORDS, 30)) for _ in range(997)]


def _add_images(store: pathlib.Path, size: planted.Size) -> None:
    (store / "images").mkdir()
    edit_sealed(store / "manifest.json", lambda manifest: manifest["extract"].update(save_images=True))
    random = np.random.default_rng(0)
    for i in range(size.samples):
        coarse = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        image = PIL.Image.fromarray(coarse).resize((size.pixels, size.pixels), PIL.Image.Resampling.BICUBIC)
        image.save(store / f"images/{i:08d}.png", compress_level=1)


if __name__ == "__main__":
    main()
