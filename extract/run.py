"""Write activations of a pipeline's text encoders or denoiser to an activation store.

    revelio extract --config mini_sd
    revelio extract --config mini_sd --list_sites

config.extract.mode selects the computation: the text encoders on prompts, the denoiser while the pipeline generates
images of prompts, or the denoiser on noised images.

Run the same command again to resume a stopped run: it continues at the first missing shard. A store of another
config or model is refused. Several processes share the shards of one store under torchrun or SLURM, or when
config.extract.worker and workers are set. Each process may be stopped and restarted at any time.

--live writes only the shards that another process asks for: revelio train with config.data.live.

--status prints the progress of a store. --verify reads the whole store and exits with status 1 if a part is broken
or missing. Both work without the model.
"""

import os
import sys
import time
import types
import typing
from collections.abc import Sequence

from extract import live, shards, status, workers
from revelio_jax import files
from revelio_jax.cli import parse
from revelio_jax.config import Config, ExtractConfig
from revelio_jax.errors import InputError, memory_advice, report_errors
from revelio_jax.pipelines import families, hook_points
from revelio_jax.store import Manifest, StoreWriter, Worker, layout

FLAGS = {
    "list_sites": (False, "print every hook point of config.model with its size, then exit"),
    "status": (False, "print which shards of the store are written and which are missing, then exit"),
    "live": (False, "write the shards whose numbers arrive on standard input, until it ends"),
    "verify": (False, "read every chunk of the store, print which shards are broken, then exit"),
}


def extract(config: Config, pipe: typing.Any = None, requests: live.Requests | None = None) -> Manifest | None:
    """Write the store that ``config`` describes, or this worker's part of it.

    ``pipe`` is a diffusers pipeline that the caller has built, for example with LoRAs, quantized or offloaded. It
    replaces config.model.id, family, dtype and device, stays where it is, and is restored afterwards.

    With ``requests``, write only the requested shards, without end.

    Return the manifest, or None if other workers still have shards to write. Raise InputError before anything is
    written if an input, the model, or an existing store does not fit the config.
    """
    started = time.monotonic()
    _check_sites(config.extract)
    _check_store(config.extract.store)
    worker, _ = assignment = workers.find(config.extract, os.environ)

    mode = _import_mode(config.extract.mode)
    from extract import models  # imports torch

    inputs = mode.read_inputs(config.extract)
    with models.opened(config, pipe) as (config, source):
        job = mode.load(config, inputs, worker, source)
        if requests is None:
            print(assignment, flush=True)
        writer = StoreWriter(config.extract.store, mode.plan(job), mode.samples_table(job))
        if requests is not None:
            live.write_requested(mode, job, writer, worker, requests)
        if line := shards.batch_size_line(writer):
            print(line)
        if writer.finished:
            print(f"store {config.extract.store} is already complete")
            return writer.finish()
        manifest = write_missing_shards(mode, job, writer, worker)
    if manifest is not None:
        _print_summary(writer.location, manifest, job.unit, time.monotonic() - started)
    return manifest


def write_missing_shards(mode: typing.Any, job: typing.Any, writer: StoreWriter, worker: Worker) -> Manifest | None:
    """Write the worker's missing shards, and then the manifest if all shards of the store are written.

    ``mode`` is a module of extract.modes and ``job`` the result of its ``load``. Return the manifest, or None
    while other workers have shards to write. Raise InputError if the store cannot be written or if another run is
    writing the same shards.
    """
    with writer.lock_shards(worker):
        missing = shards.missing_shards(writer, worker)
        with (
            shards.progress_bar(writer, worker, missing, job.unit, job.passes) as progress,
            shards.BackgroundWriter(writer.write_shard, progress) as background,
        ):
            for shard in missing:
                samples = shards.samples_of(shard, writer.plan)
                background.write_shard(shard, mode.shard_rows(job, samples, background.advance))
        if missing := writer.missing():
            print(shards.waiting_line(missing, worker, writer.plan.shards))
            return None
        return writer.finish()


def _import_mode(name: str) -> types.ModuleType:
    """Import and return the module of a mode, which takes seconds because it imports torch.

    A mode module has five functions:

        read_inputs(extract)                  read and check the prompts or images
        load(config, inputs, worker, source)  load the pipeline; return the mode's job, a frozen dataclass
        plan(job)                             return the store's plan
        samples_table(job)                    return the store's samples
        shard_rows(job, samples, progress)    compute the rows of one shard from its samples alone
    """
    if name == "generate":
        from extract.modes import generate as mode
    elif name == "noised":
        from extract.modes import noised as mode
    else:
        from extract.modes import text as mode
    return mode


def _check_sites(extract: ExtractConfig) -> None:
    """Raise InputError if config.extract.sites is empty, has a duplicate, or does not fit the mode."""
    if not extract.sites:
        raise InputError("config.extract.sites is empty; set it to hook points, for example clip.layer.9")
    for name in extract.sites:
        if extract.sites.count(name) > 1:
            raise InputError(f"config.extract.sites contains {name} twice")
        if extract.mode == "text" and any(hook_points.is_denoiser_point(part) for part in name.split("+")):
            raise InputError(
                f"config.extract.sites contains {name}, a hook point of the denoiser; config.extract.mode must then be "
                "generate or noised, not text"
            )
        if extract.mode != "text" and not hook_points.is_denoiser_point(name):
            raise InputError(
                f"config.extract.sites contains {name}; with config.extract.mode={extract.mode} it must be a hook "
                f"point of a denoiser, whose names start with {', '.join(families.denoiser_prefixes())}"
            )


def _check_store(location: str | None) -> None:
    """Raise InputError if a store cannot be reached, or cannot be written although it is unfinished."""
    is_finished = layout.read_manifest(layout.open_kvstore(location)) is not None
    if not is_finished and (folder := layout.local_folder(location)):
        files.check_writable(folder, "config.extract.store")


def _check_location(location: str | None) -> None:
    """Raise InputError for a store that would not outlive the command. Tests write to memory:// with extract()."""
    if location and location.startswith("memory:"):
        raise InputError(
            f"config.extract.store is {location!r}, which ends with the process; use a folder, gs:// or s3://"
        )
    if location and location.startswith(("http:", "https:")):
        raise InputError(f"config.extract.store is {location!r}, which is read-only; use a folder, gs:// or s3://")


def _print_summary(location: str, manifest: Manifest, unit: str, seconds: float) -> None:
    sites = manifest["sites"]
    rows = ", ".join(f"{name} {site['rows']:,} x {site['d']}" for name, site in sites.items())
    dropped = sum(site["dropped"] for site in sites.values())
    item_size = {"float32": 4, "float16": 2, "bfloat16": 2}[manifest["dtype"]]
    megabytes = sum(site["rows"] * site["d"] * item_size for site in sites.values()) / 1e6
    skip_count = max(len(site.get("skipped", ())) for site in sites.values())
    skipped = f"; {unit}s skipped: {skip_count:,}" if skip_count else ""
    print(f"{manifest['samples']:,} {unit}s, rows: {rows}; {dropped:,} non-finite rows dropped{skipped}")
    print(f"{megabytes:,.1f} MB of {manifest['dtype']} in {seconds:.1f} s: {location}")


@memory_advice("lower config.extract.batch_size, or set config.model.offload; the same store then continues")
def main(argv: Sequence[str]) -> None:
    """Run ``revelio extract`` with the arguments ``argv``."""
    config, flags = parse(["extract.run", *argv], __doc__, **FLAGS)
    if flags["list_sites"]:
        from extract import listing  # imports torch

        print(listing.table(config))
    elif flags["status"] or flags["verify"]:
        worker, _ = workers.find(config.extract, os.environ)
        is_good = status.report(config.extract.store, worker.count, verify=flags["verify"])
        raise SystemExit(0 if is_good else 1)
    else:
        _check_location(config.extract.store)
        extract(config, requests=live.read_requests() if flags["live"] else None)


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
