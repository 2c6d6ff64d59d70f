"""The report's pictures: one small file a sample, which all latents share."""

import concurrent.futures
import json
import os
import pathlib
import shutil
from collections.abc import Iterable

import PIL.Image
import tqdm

from revelio_jax.interpret.sample_images import ImageReader

CRISP = 64  # pixels; what is no larger is kept without loss and shown with its pixels seen
AHEAD = 64  # pictures in memory


def path_of(sample: int) -> str:
    return f"thumbnails/{sample // 1000:04d}/{sample}.webp"


def draw(
    report: pathlib.Path,
    samples: Iterable[int],
    pictures: ImageReader,
    pixels: int,
    made_from: str,
    before: pathlib.Path,
) -> tuple[frozenset[int], tuple[int, int] | None]:
    """Draw the pictures of ``samples`` into a report's folder, none larger than ``pixels``.

    Those of the report ``before``, if it was made from the same, are taken over. Returns the samples that
    have one (a picture that does not decode has none), and width and height of the first.
    """
    samples = list(samples)
    made = {"from": made_from, "pixels": pixels}
    (report / "thumbnails").mkdir(parents=True)
    (report / "thumbnails" / "made.json").write_text(json.dumps(made) + "\n")
    old = before if _read(before / "thumbnails" / "made.json") == made else None
    for part in sorted({sample // 1000 for sample in samples}):
        (report / "thumbnails" / f"{part:04d}").mkdir()

    def one(sample: int) -> tuple[int, int] | None:
        path = report / path_of(sample)
        if old and (old / path_of(sample)).is_file():
            _link(old / path_of(sample), path)
            with PIL.Image.open(path) as picture:
                return picture.size
        picture = pictures(sample)
        if picture is None:
            return None
        crisp = max(picture.size) <= CRISP
        picture.thumbnail((pixels, pixels), PIL.Image.Resampling.LANCZOS)
        picture.save(path, "WEBP", lossless=crisp, quality=80, method=4)
        return picture.size

    sizes: dict[int, tuple[int, int]] = {}
    with (
        concurrent.futures.ThreadPoolExecutor() as threads,
        tqdm.tqdm(total=len(samples), desc="pictures", unit="picture", dynamic_ncols=True) as progress,
    ):
        for start in range(0, len(samples), AHEAD):
            part = samples[start : start + AHEAD]
            for sample, size in zip(part, threads.map(one, part), strict=True):
                progress.update()
                if size:
                    sizes[sample] = size
    return frozenset(sizes), next(iter(sizes.values()), None)


def _link(old: pathlib.Path, new: pathlib.Path) -> None:
    try:
        os.link(old, new)
    except OSError:  # a file system without links
        shutil.copyfile(old, new)


def _read(path: pathlib.Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
