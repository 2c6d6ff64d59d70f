"""The autoencoder of an SAE folder, in torch."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping

import torch

from revelio_jax.sae_folder.cfg import SaeMetadata
from revelio_jax.sae_folder.reader import read_folder
from revelio_jax.sae_folder.untrusted import Shape, read_tensors


@dataclasses.dataclass(frozen=True)
class Sae:
    """A sparse autoencoder in float32. ``metadata`` holds its model and hook point.

    At most ``k`` latents fire (topk), or all above ``threshold_F`` (jumprelu), or all positive ones if both are None
    (standard). B batch, T tokens, D width, F latents.
    """

    W_enc_DF: torch.Tensor
    b_enc_F: torch.Tensor
    W_dec_FD: torch.Tensor
    b_dec_D: torch.Tensor
    k: int | None
    metadata: SaeMetadata
    threshold_F: torch.Tensor | None = None

    @property
    def d(self) -> int:
        """Return the width of the activations."""
        return self.W_dec_FD.shape[1]

    @property
    def n_latents(self) -> int:
        """Return the dictionary size."""
        return self.W_dec_FD.shape[0]

    @property
    def site(self) -> str:
        """Return the hook point that the SAE was trained on, or several joined by + that share the SAE."""
        return self.metadata.get("site", "")

    @property
    def architecture(self) -> str:
        """Return the architecture's name in SAELens: topk, jumprelu or standard."""
        return "topk" if self.k is not None else "standard" if self.threshold_F is None else "jumprelu"

    @property
    def reads_difference(self) -> bool:
        """Return whether the SAE reads a module's output minus its input instead of the output."""
        return self.metadata.get("value") == "difference"

    def to(self, device: torch.device) -> "Sae":
        """Return the SAE on a device."""
        tensors = {name: t for name, t in vars(self).items() if isinstance(t, torch.Tensor)}
        return dataclasses.replace(self, **{name: t.to(device) for name, t in tensors.items()})

    def pre_codes(self, x: torch.Tensor) -> torch.Tensor:
        """Return the latents [..., F] of activations [..., D] before selection: ReLU(W_enc (x - b_dec) + b_enc)."""
        return torch.relu((x.float() - self.b_dec_D) @ self.W_enc_DF + self.b_enc_F)

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """Return the latents [..., F] of activations [..., D]; with topk, at most k of a row are not zero."""
        z = self.pre_codes(x)
        if self.threshold_F is not None:
            return z * (z > self.threshold_F)
        if self.k is None:
            return z
        values, indices = z.topk(self.k, dim=-1)
        return torch.zeros_like(z).scatter(-1, indices, values)

    def directions(self, z: torch.Tensor) -> torch.Tensor:
        """Return W_dec z, the change of activations [..., D] for a change of latents [..., F]."""
        return z @ self.W_dec_FD

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Return the reconstruction of activations [..., D]."""
        return self.directions(self.codes(x)) + self.b_dec_D


def load_sae(folder: str | pathlib.Path, site: str | None = None) -> Sae:
    """Read an SAE folder of this project, SAELens or sparsify.

    ``site`` is the hook point, for folders whose metadata lack it. Raise InputError if the folder is missing or
    malformed.
    """
    content = read_folder(folder, site)
    threshold_F = content.threshold_F
    return Sae(
        torch.from_numpy(content.W_enc_DF),
        torch.from_numpy(content.b_enc_F),
        torch.from_numpy(content.W_dec_FD),
        torch.from_numpy(content.b_dec_D),
        content.k,
        content.metadata,
        None if threshold_F is None else torch.from_numpy(threshold_F),
    )


def read_torch_tensors(
    path: pathlib.Path, shapes: Mapping[str, Shape], dtypes: Mapping[str, Iterable[str]] | None = None
) -> dict[str, torch.Tensor]:
    """Return tensors of an untrusted safetensors file; see :func:`revelio_jax.sae_folder.untrusted.read_tensors`."""
    return {name: torch.from_numpy(array) for name, array in read_tensors(path, shapes, dtypes).items()}
