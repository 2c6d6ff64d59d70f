"""Write thumbnails: one small image file per sample, which all latents share."""

import concurrent.futures
import json
import os
import pathlib
import shutil
from collections.abc import Iterable

import PIL.Image
import tqdm

from revelio_jax import json_text
from revelio_jax.interpret.sample_images import ImageReader

CRISP = 64  # pixels; images up to this size are stored without loss and shown with sharp pixels
AHEAD = 64  # images in memory


def path_of(sample: int) -> str:
    """Return the path of a sample's thumbnail in the report."""
    return f"thumbnails/{sample // 1000:04d}/{sample}.webp"


def write(
    report: pathlib.Path,
    samples: Iterable[int],
    images: ImageReader,
    pixels: int,
    fingerprint: str,
    old_report: pathlib.Path,
) -> tuple[frozenset[int], tuple[int, int] | None]:
    """Write thumbnails of ``samples``, each side at most ``pixels``, into the folder of a report.

    Reuse the files of ``old_report`` if its store (``fingerprint``) and size are the same. Return the samples with a
    thumbnail, that is, with an image that can be decoded, and the width and height of the first thumbnail.
    """
    samples = list(samples)
    source = {"from": fingerprint, "pixels": pixels}
    (report / "thumbnails").mkdir(parents=True)
    (report / "thumbnails" / "made.json").write_text(json.dumps(source) + "\n")
    old = old_report if _read(old_report / "thumbnails" / "made.json") == source else None
    for part in sorted({sample // 1000 for sample in samples}):
        (report / "thumbnails" / f"{part:04d}").mkdir()

    def write_one(sample: int) -> tuple[int, int] | None:
        path = report / path_of(sample)
        if old and (old / path_of(sample)).is_file():
            _link(old / path_of(sample), path)
            with PIL.Image.open(path) as image:
                return image.size
        image = images(sample)
        if image is None:
            return None
        crisp = max(image.size) <= CRISP
        image.thumbnail((pixels, pixels), PIL.Image.Resampling.LANCZOS)
        image.save(path, "WEBP", lossless=crisp, quality=80, method=4)
        return image.size

    sizes: dict[int, tuple[int, int]] = {}
    with (
        concurrent.futures.ThreadPoolExecutor() as threads,
        tqdm.tqdm(total=len(samples), desc="images", unit="image", dynamic_ncols=True) as progress,
    ):
        for start in range(0, len(samples), AHEAD):
            part = samples[start : start + AHEAD]
            for sample, size in zip(part, threads.map(write_one, part), strict=True):
                progress.update()
                if size:
                    sizes[sample] = size
    return frozenset(sizes), next(iter(sizes.values()), None)


def _link(old: pathlib.Path, new: pathlib.Path) -> None:
    try:
        os.link(old, new)
    except OSError:  # the file system has no hard links
        shutil.copyfile(old, new)


def _read(path: pathlib.Path) -> object:
    try:
        return json_text.parse(path.read_bytes())
    except (OSError, ValueError):
        return None
