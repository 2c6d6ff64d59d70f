"""Checksums of the files of a checkpoint, in its file sha256.json, because Orbax stores none of arrays."""

import concurrent.futures
import json
import pathlib

from revelio_jax import files

NAME = "sha256.json"
UNFINISHED = "*.orbax-checkpoint-tmp*"


def write(checkpoint: pathlib.Path) -> None:
    """Write the sha256 of the files of all items of a checkpoint. Raise InputError if the file cannot be written."""
    paths = (path.relative_to(checkpoint).as_posix() for path in checkpoint.glob("*/**/*") if path.is_file())
    names = sorted(name for name in paths if not name.endswith("/commit_success.txt"))  # Orbax writes it later
    files.write_text(checkpoint / NAME, json.dumps(dict(zip(names, _sums(checkpoint, names), strict=True)), indent=1))


def check(checkpoint: pathlib.Path, *items: str, share: tuple[int, int] = (0, 1)) -> None:
    """Raise ValueError or OSError if a file of one of the ``items`` is missing or does not match its checksum.

    ``share`` is the number of this process and the number of processes that check the files together. Do nothing for
    checkpoints of earlier versions, which have no sha256.json.
    """
    if not (checkpoint / NAME).exists():
        return
    saved = json.loads((checkpoint / NAME).read_text())
    if not isinstance(saved, dict):
        raise ValueError(f"{NAME} is not a JSON object")
    number, count = share
    names = [name for name in saved if name.partition("/")[0] in items][number::count]
    for name, found in zip(names, _sums(checkpoint, names), strict=True):
        if found != saved[name]:
            raise ValueError(f"{name} does not match its checksum")


def _sums(folder: pathlib.Path, names: list[str]) -> list[str]:
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        return list(threads.map(lambda name: files.sha256(folder / name), names))
