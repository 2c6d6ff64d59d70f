"""Take activations of a pipeline's text encoders or denoiser and write them to an activation store.

    python -m extract.run --config configs/mini_sd.py
    python -m extract.run --config configs/mini_sd.py --list_sites

config.extract.mode says what runs: text encoders alone over prompts, the denoiser while it makes
pictures of them, or the denoiser on noised pictures. A run that was stopped goes on at the first
missing shard when the same command is given again; a store that another config or model made is refused.
Several processes share the shards of one store under torchrun or SLURM, or as config.extract.worker and
workers say; any may be stopped and started again. ``--status`` says how far a store is, ``--verify``
reads all of it and ends with status 1 where something is wrong or missing; neither needs the model.
"""

import os
import sys
import time
import typing
from collections.abc import Sequence

from extract import shards, status, workers
from extract.jobs import ExtractionJob
from revelio_jax.cli import parse
from revelio_jax.config import Config
from revelio_jax.errors import InputError, reported
from revelio_jax.pipelines import hook_points
from revelio_jax.store import StoreWriter, Worker
from revelio_jax.store.layout import kvstore_url

FLAGS = {
    "list_sites": (False, "only print every site of config.model and its size"),
    "status": (False, "only say what of the store is done and what is missing"),
    "verify": (False, "only read every chunk of the store and say which shards are broken"),
}


def extract(config: Config) -> dict[str, typing.Any] | None:
    """Write the store that ``config`` describes, or this worker's part of it. Raises InputError.

    Returns the manifest, or None where other workers have shards to write yet. All that can be refused
    is refused before anything is written.
    """
    started = time.monotonic()
    _check_names(config.extract.sites, config.extract.mode)
    kvstore_url(config.extract.store)
    worker = workers.find(config.extract, os.environ)
    work = _prepared(config, worker)
    writer = StoreWriter(config.extract.store, work.plan, work.samples)
    if writer.finished:
        print(f"store {config.extract.store} is complete: nothing to do")
        return writer.finish()
    manifest = shards.write(writer, worker, work)
    if manifest is not None:
        _summarise(config.extract.store, manifest, work.unit, time.monotonic() - started)
    return manifest


def _prepared(config: Config, worker: Worker) -> ExtractionJob:
    """What the mode makes of the config. The modes import torch, which takes seconds."""
    if config.extract.mode == "generate":
        from extract.modes import generate as mode
    elif config.extract.mode == "noised":
        from extract.modes import noised as mode
    else:
        from extract.modes import text as mode
    return mode.prepare(config, worker)


def _check_names(names: tuple[str, ...], mode: str) -> None:
    if not names:
        raise InputError("config.extract.sites is empty; it names hook points, such as ('clip.layer.9',)")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"config.extract.sites names {name} twice")
        if mode == "text" and any(hook_points.is_denoiser_site(part) for part in name.split("+")):
            raise InputError(
                f"config.extract.sites: {name} belongs to the denoiser, which config.extract.mode=text does "
                "not run; allowed there: generate, noised"
            )
        if mode != "text" and not hook_points.is_denoiser_site(name):
            raise InputError(
                f"config.extract.sites: {name} is no site of a denoiser, which config.extract.mode={mode} "
                f"records; those begin with {', '.join(hook_points.DENOISER_PREFIXES)}"
            )


def _summarise(location: str, manifest: dict[str, typing.Any], unit: str, seconds: float) -> None:
    found = manifest["sites"]
    rows = ", ".join(f"{name} {site['rows']:,} x {site['d']}" for name, site in found.items())
    dropped = sum(site["dropped"] for site in found.values())
    size = {"float32": 4, "float16": 2, "bfloat16": 2}[manifest["dtype"]]
    megabytes = sum(site["rows"] * site["d"] * size for site in found.values()) / 1e6
    count = max(len(site.get("skipped", ())) for site in found.values())
    skipped = f"; {unit}s skipped: {count:,}" if count else ""
    print(f"{manifest['samples']:,} {unit}s, rows: {rows}; {dropped:,} non-finite rows dropped{skipped}")
    print(f"{megabytes:,.1f} MB of {manifest['dtype']} in {seconds:.1f} s: {location}")


def main(argv: Sequence[str]) -> None:
    config, flags = parse(["extract.run", *argv], __doc__, **FLAGS)
    if flags["list_sites"]:
        from extract import listing

        print(listing.table(config))
    elif flags["status"] or flags["verify"]:
        worker = workers.find(config.extract, os.environ)
        good = status.report(config.extract.store, worker.count, verify=flags["verify"])
        raise SystemExit(0 if good else 1)
    elif (config.extract.store or "").startswith("memory:"):
        raise InputError(f"config.extract.store is {config.extract.store!r}, which would be lost at the end")
    elif (config.extract.store or "").startswith(("http:", "https:")):
        raise InputError(f"config.extract.store is {config.extract.store!r}, which can only be read")
    else:
        extract(config)


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
