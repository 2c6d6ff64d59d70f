"""Concepts learned from labeled prompts, and their files: one small safetensors file per concept, without the SAE."""

import dataclasses
import pathlib
import re
from collections.abc import Collection

import torch
from safetensors.torch import save

from revelio_jax import checksums
from revelio_jax.errors import InputError
from revelio_jax.files import write_bytes
from revelio_jax.sae_folder.untrusted import INTEGERS, Shape, read_header
from revelio_jax.steering.sae import read_torch_tensors
from revelio_jax.steering.transport import Change, Transport

CHANGES = tuple(field.name for field in dataclasses.fields(Transport))
PARTS = tuple(field.name for field in dataclasses.fields(Change))


@dataclasses.dataclass(frozen=True)
class LearnedConcept:
    """A concept learned from labeled prompts; see :mod:`revelio_jax.steering.latents`.

    ``latents`` [K] belong to the concept. ``difference`` [T, F] is the mean code of prompts with the concept minus
    the mean code of other prompts; [1, F] at hook points of the denoiser. A prompt has the concept if its
    latents sum to more than ``threshold`` at some position. ``transport`` is learned at text encoders; files of earlier
    versions lack it.
    """

    latents: torch.Tensor
    difference: torch.Tensor
    threshold: float
    transport: Transport | None = None

    def to(self, device: torch.device) -> "LearnedConcept":
        """Return the concept on a device."""
        if self.latents.device == self.difference.device == device:
            return self
        transport = self.transport and self.transport.to(device)
        return LearnedConcept(self.latents.to(device), self.difference.to(device), self.threshold, transport)


def save_learned(file: pathlib.Path, text: str, learned: LearnedConcept) -> None:
    """Write a concept as one safetensors file. Raise InputError if the file cannot be written."""
    tensors = {
        "latents": learned.latents,
        "difference": learned.difference,
        "threshold": torch.tensor(learned.threshold),
    }
    for name in CHANGES if learned.transport else ():
        change: Change = getattr(learned.transport, name)
        tensors |= {f"{name}.{part}": tensor for part, tensor in vars(change).items()}
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
    latents, difference, threshold = tensors["latents"], tensors["difference"], float(tensors["threshold"])
    transport = _load_transport(file, headers, *difference.shape) if f"{CHANGES[0]}.latents" in headers else None
    return metadata["text"], LearnedConcept(latents, difference, threshold, transport)


def _load_transport(file: pathlib.Path, headers: Collection[str], length: int, n: int) -> Transport:
    """Return the changes in a file for prompts of ``length`` tokens and an SAE of ``n`` latents.

    Raise InputError if they are malformed.
    """
    shapes: dict[str, Shape] = {}
    for name in CHANGES:
        shapes |= {f"{name}.latents": (None,), f"{name}.of_latents_KD": (None, None)}
        shapes |= {f"{name}.of_positions_TD": (length, None)}
    tensors = read_torch_tensors(file, shapes, {f"{name}.latents": INTEGERS for name in CHANGES})
    changes = [Change(*(tensors[f"{name}.{part}"] for part in PARTS)) for name in CHANGES]
    width = changes[0].of_positions_TD.shape[1]
    for change in changes:
        if not ((change.latents >= 0) & (change.latents < n)).all():
            raise InputError(f"{file}: latents of a change are out of range: difference has latents 0-{n - 1}")
        if change.of_latents_KD.shape != (len(change.latents), width) or change.of_positions_TD.shape[1] != width:
            raise InputError(f"{file}: the changes of a concept have different shapes")
    return Transport(*changes)


def file_name(text: str) -> str:
    """Return a file name without suffix for the text of a concept."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "concept"
