"""How long the report of a large SAE takes to write, how large it is, and what a browser loads of it.

    python tests/benchmarks/report.py --json report.json
    python tests/benchmarks/report.py --json report.json --latents 65536 --samples 20000 --kind text

Results are synthetic, of as many latents and samples, with as much kept of each latent as by default, five
timesteps and maps of 16 x 16; the store's pictures have 256 pixels of noise, which no format compresses well.
``seconds`` are of writing, ``cpu_seconds`` those of all threads in it, ``peak_gib`` is the largest resident
memory of a process that does nothing else. ``first_kb`` is what Chromium loads of each page before anybody
scrolls, searches or sorts, from a web server, without compression.
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
import results as rows

from revelio_jax.config import Config, InterpretConfig
from revelio_jax.interpret import report
from revelio_jax.interpret.latents import results
from tests.helpers import browser, planted

TOP = InterpretConfig()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", default="", metavar="FILE", help="where the row is written")
    parser.add_argument("--kind", choices=("image", "text"), default="image")
    parser.add_argument("--latents", type=int, default=65_536)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--folder", default="", help="where the run is kept; empty is a temporary folder")
    given = parser.parse_args()
    path = rows.checked(given.json)
    with tempfile.TemporaryDirectory() as temporary:
        row = measured(pathlib.Path(given.folder or temporary), given)
    rows.write(path, [row])
    print(json.dumps(row))


def measured(folder: pathlib.Path, given: argparse.Namespace) -> dict:
    maker = multiprocessing.get_context("spawn").Process(target=_make, args=(folder, given))
    maker.start()
    maker.join()
    if maker.exitcode:
        raise SystemExit(maker.exitcode)
    found = results.load(results.folder_of(str(folder / "run")))
    config = dataclasses.replace(Config(), run=str(folder / "run"))
    started, cpu = time.perf_counter(), time.process_time()
    written = report.write(config, found)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    files = [file for file in written.rglob("*") if file.is_file()]
    return {
        "kind": given.kind,
        "latents": given.latents,
        "samples": given.samples,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "files": len(files),
        "mb": round(sum(file.stat().st_size for file in files) / 1e6, 1),
        "pictures_mb": round(sum(f.stat().st_size for f in files if f.suffix == ".webp") / 1e6, 1),
        "peak_gib": round(peak, 2),
        "first_kb": browser.first_loads(written, ("index.html", "latents.html", f"latent.html#{given.latents // 2}")),
    }


def _make(folder: pathlib.Path, given: argparse.Namespace) -> None:
    size = planted.Size(given.latents, given.samples, TOP.top, TOP.weaker, TOP.top, TOP.neighbours, 16, 77, pixels=256)
    store = planted.make_store(folder / "store", given.kind, size, _prompts(), pictures=False)
    if given.kind == "image":
        _add_pictures(folder / "store", size)
    planted.make(folder / "run", store, given.kind, size)


def _prompts() -> list[str]:
    """Prompts of some 30 words."""
    random = np.random.default_rng(0)
    return [" ".join(random.choice(planted.WORDS, 30)) for _ in range(997)]


def _add_pictures(store: pathlib.Path, size: planted.Size) -> None:
    (store / "images").mkdir()
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["extract"]["save_images"] = True
    (store / "manifest.json").write_text(json.dumps(manifest))
    random = np.random.default_rng(0)
    for i in range(size.samples):
        coarse = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        picture = PIL.Image.fromarray(coarse).resize((size.pixels, size.pixels), PIL.Image.Resampling.BICUBIC)
        picture.save(store / f"images/{i:08d}.png", compress_level=1)


if __name__ == "__main__":
    main()
