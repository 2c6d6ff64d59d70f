"""What labelled prompts say of a concept, and its file: one safetensors file, small, without the SAE."""

import dataclasses
import pathlib
import re

import torch
from safetensors.torch import save

from revelio_jax.errors import InputError
from revelio_jax.sae_folder.untrusted import INTEGERS, Shape, read_header
from revelio_jax.steering.sae import read_torch_tensors


@dataclasses.dataclass(frozen=True)
class Learned:
    """What labelled prompts say of a concept; see :mod:`revelio_jax.steering.latents`.

    ``latents`` [K]: those that belong to it. ``difference`` [T, F]: mean code of the prompts with the
    concept minus that of the prompts without. ``threshold``: a prompt holds the concept when its
    latents sum to more than this at some position.
    """

    latents: torch.Tensor
    difference: torch.Tensor
    threshold: float

    def to(self, device: torch.device) -> "Learned":
        if self.latents.device == self.difference.device == device:
            return self
        return Learned(self.latents.to(device), self.difference.to(device), self.threshold)


def save_learned(file: pathlib.Path, text: str, learned: Learned) -> None:
    """Write a concept as one safetensors file; whole or not at all."""
    tensors = {
        "latents": learned.latents,
        "difference": learned.difference,
        "threshold": torch.tensor(learned.threshold),
    }
    partial = file.with_suffix(".partial")
    # Not save_file, whose files nobody else can read.
    partial.write_bytes(save({name: t.cpu().contiguous() for name, t in tensors.items()}, {"text": text}))
    partial.replace(file)


def saved_concepts(run: str) -> dict[str, Learned]:
    """The concepts that were learned for a run, by their text; {} where none."""
    learned = map(load_learned, sorted(pathlib.Path(run, "steering").glob("*.safetensors")))
    return dict(learned)


def load_learned(file: pathlib.Path) -> tuple[str, Learned]:
    """A concept's text and what was learned of it. Raises InputError with what is wrong with the file."""
    metadata, held = read_header(file)
    if "text" not in metadata:
        raise InputError(f"{file} is no concept: it does not say of what text")
    _, latents = held.get("latents", ("", [0]))
    # No latent at all is what prompts that tell nothing apart teach.
    shapes: dict[str, Shape] = {"latents": (0,) if latents == [0] else (None,)}
    shapes |= {"difference": (None, None), "threshold": ()}
    tensors = read_torch_tensors(file, shapes, {"latents": INTEGERS})
    n = tensors["difference"].shape[1]
    if not ((tensors["latents"] >= 0) & (tensors["latents"] < n)).all():
        raise InputError(f"{file}: latents are none of the {n} that difference has")
    return metadata["text"], Learned(**tensors | {"threshold": float(tensors["threshold"])})


def file_name(text: str) -> str:
    """A concept's text as the stem of a file's name."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "concept"
