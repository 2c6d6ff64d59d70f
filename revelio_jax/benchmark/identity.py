"""Everything outside of a method that determines the images of a benchmark."""

import dataclasses
import hashlib
import importlib.metadata
import pathlib
import typing

import torch

from revelio_jax import files, shipped
from revelio_jax.config import Config
from revelio_jax.steering.sae import Sae

# Fields of config.steer that change the pipeline's images; prompts have their own seed, guidance scale and size.
SAMPLING_FIELDS = ("steps", "pooled")


def identity(config: Config, export: pathlib.Path | None) -> dict[str, typing.Any]:
    """Return the settings that determine the images of a prompt, a seed and a method.

    Files of a local model count by their sizes and times, those of the SAE folder ``export`` by their content. Not
    included: the files of a model from the hub, whose newest revision can change, other libraries, the device, the
    batch size, and local changes of the code.
    """
    steer = dataclasses.asdict(config.steer)
    model = dataclasses.asdict(config.model)
    return {
        "version": importlib.metadata.version("revelio_jax"),
        "torch": torch.__version__,
        "diffusers": importlib.metadata.version("diffusers"),
        "model": {name: model[name] for name in ("id", "revision", "family", "dtype")},
        "model_files": _file_states(config.model.id),
        "steer": {name: steer[name] for name in SAMPLING_FIELDS},
        "call": [steer["guidance"], steer["height"], steer["width"]],  # of sampled concepts in the denoiser
        "sae": export and _sae_hash(export),
    }


def sae_settings(sae: Sae) -> dict[str, typing.Any]:
    """Return the settings of an SAE that an ablation may vary; None for those that its folder does not name."""
    metadata, training = sae.metadata, sae.metadata.get("training", {})
    return {
        "site": sae.site,
        "width": sae.d,
        "latents": sae.n_latents,
        "k": metadata.get("k") or sae.k,
        "architecture": metadata.get("architecture") or sae.architecture,
        "positions": metadata.get("positions"),
        **{name: training.get(name) for name in ("steps", "batch_size", "learning_rate", "seed")},
    }


def _sae_hash(export: pathlib.Path) -> str:
    """Return a hash of the files of an SAE folder."""
    paths = [path for path in sorted(export.glob("*")) if path.suffix in (".json", ".safetensors")]
    return hashlib.sha256("".join(files.sha256(path) for path in paths).encode()).hexdigest()


def _file_states(location: str | None) -> list[tuple[str, int, int]]:
    """Return path, size and modification time in nanoseconds of the files of a local folder; none for a hub id."""
    folder = pathlib.Path(shipped.locate(location)) if location else None
    if folder is None or not folder.is_dir():
        return []
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
