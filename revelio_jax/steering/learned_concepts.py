"""Concepts learned from labeled prompts, and their files: one small safetensors file per concept, without the SAE."""

import dataclasses
import pathlib
import re

import torch
from safetensors.torch import save

from revelio_jax import checksums
from revelio_jax.errors import InputError
from revelio_jax.files import write_bytes
from revelio_jax.sae_folder.untrusted import INTEGERS, Shape, read_header
from revelio_jax.steering.sae import read_torch_tensors


@dataclasses.dataclass(frozen=True)
class LearnedConcept:
    """A concept learned from labeled prompts; see :mod:`revelio_jax.steering.latents`.

    ``latents`` [K] belong to the concept. ``difference`` [T, F] is the mean code of prompts with the concept minus
    the mean code of other prompts; [1, F] at hook points of the denoiser. A prompt has the concept if its
    latents sum to more than ``threshold`` at some position.
    """

    latents: torch.Tensor
    difference: torch.Tensor
    threshold: float

    def to(self, device: torch.device) -> "LearnedConcept":
        """Return the concept on a device."""
        if self.latents.device == self.difference.device == device:
            return self
        return LearnedConcept(self.latents.to(device), self.difference.to(device), self.threshold)


def save_learned(file: pathlib.Path, text: str, learned: LearnedConcept) -> None:
    """Write a concept as one safetensors file. Raise InputError if the file cannot be written."""
    tensors = {
        "latents": learned.latents,
        "difference": learned.difference,
        "threshold": torch.tensor(learned.threshold),
    }
    # save_file would create a file that other users cannot read.
    tensors = {name: t.cpu().contiguous() for name, t in tensors.items()}
    checksum = checksums.of_tensors({name: t.numpy() for name, t in tensors.items()})
    write_bytes(file, checksums.sort_metadata(save(tensors, {"text": text, checksums.TENSORS: checksum})))


def saved_concepts(run: str | pathlib.Path) -> dict[str, LearnedConcept]:
    """Return the learned concepts of a run folder by their text. Raise InputError if a file is malformed."""
    return dict(map(load_learned, sorted(pathlib.Path(run, "steering").glob("*.safetensors"))))


def load_learned(file: pathlib.Path) -> tuple[str, LearnedConcept]:
    """Return the text and the concept in a file of :func:`save_learned`. Raise InputError if it is malformed."""
    metadata, headers = read_header(file)
    if "text" not in metadata:
        raise InputError(f"{file} is not a learned concept: its metadata has no text")
    _, shape = headers.get("latents", ("", [0]))
    # Prompts that do not separate the concept yield no latents.
    shapes: dict[str, Shape] = {"latents": (0,) if shape == [0] else (None,)}
    shapes |= {"difference": (None, None), "threshold": ()}
    tensors = read_torch_tensors(file, shapes, {"latents": INTEGERS})
    n = tensors["difference"].shape[1]
    if not ((tensors["latents"] >= 0) & (tensors["latents"] < n)).all():
        raise InputError(f"{file}: latents are out of range: difference has latents 0-{n - 1}")
    return metadata["text"], LearnedConcept(tensors["latents"], tensors["difference"], float(tensors["threshold"]))


def file_name(text: str) -> str:
    """Return a file name without suffix for the text of a concept."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "concept"
