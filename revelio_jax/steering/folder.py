"""The exported SAE folder in torch: what steering reads. Only JSON and safetensors are opened."""

import dataclasses
import json
import pathlib
import typing

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from revelio_jax.errors import InputError

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


@dataclasses.dataclass(frozen=True)
class Sae:
    """A k-sparse autoencoder in float32: W_enc_DF, b_enc_F, W_dec_FD, b_dec_D and its facts.

    ``metadata`` says which model and sites it belongs to. B batch, T tokens, D width, F latents.
    """

    W_enc_DF: torch.Tensor
    b_enc_F: torch.Tensor
    W_dec_FD: torch.Tensor
    b_dec_D: torch.Tensor
    k: int
    metadata: dict[str, typing.Any]

    @property
    def d(self) -> int:
        return self.W_dec_FD.shape[1]

    @property
    def n_latents(self) -> int:
        return self.W_dec_FD.shape[0]

    def to(self, device: torch.device) -> "Sae":
        tensors = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if "_" in f.name}
        return dataclasses.replace(self, **{name: t.to(device) for name, t in tensors.items()})

    def pre_codes(self, x: torch.Tensor) -> torch.Tensor:
        """Latents [..., F] of activations [..., D] before top-k: ReLU(W_enc (x - b_dec) + b_enc)."""
        return torch.relu((x.float() - self.b_dec_D) @ self.W_enc_DF + self.b_enc_F)

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """Latents [..., F]; at most k of them are not zero."""
        values, indices = self.pre_codes(x).topk(self.k, dim=-1)
        return torch.zeros(*x.shape[:-1], self.n_latents, device=x.device).scatter(-1, indices, values)

    def directions(self, z: torch.Tensor) -> torch.Tensor:
        """W_dec z without the bias: a change of activations [..., D] for a change of latents."""
        return z @ self.W_dec_FD

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        return self.directions(self.codes(x)) + self.b_dec_D


def load_sae(folder: str | pathlib.Path) -> Sae:
    """Read an exported folder. Raises InputError with what is wrong with it."""
    folder = pathlib.Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"SAE folder {folder}: {name} is missing; python -m revelio_jax.export makes it")
    try:
        config = json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise InputError(f"SAE folder {folder}: {CONFIG} is no JSON: {error}") from error
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise InputError(f"SAE folder {folder}: {WEIGHTS} cannot be read: {error}") from error
    architecture = config.get("architecture") if isinstance(config, dict) else None
    if architecture != "topk":  # first, since others have no k
        raise InputError(f"SAE folder {folder}: architecture is {architecture!r}; allowed: topk")
    try:
        d, n, k = (int(config[key]) for key in ("d_in", "d_sae", "k"))
        metadata = dict(config["metadata"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"SAE folder {folder}: {CONFIG} lacks or misstates {error}") from error
    if not isinstance(metadata.get("site"), str):
        raise InputError(f"SAE folder {folder}: {CONFIG} has no metadata.site, the hook point to steer")
    if not 0 < k <= n:
        raise InputError(f"SAE folder {folder}: k is {k}; it must be between 1 and d_sae = {n}")
    for name, shape in {"W_enc": (d, n), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}.items():
        if name not in tensors:
            raise InputError(f"SAE folder {folder}: tensor {name} is missing from {WEIGHTS}")
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise InputError(
                f"SAE folder {folder}: {name} is {tensor.dtype} {list(tensor.shape)}; "
                f"{CONFIG} asks for floating point {list(shape)}"
            )
        if not tensor.isfinite().all():
            raise InputError(f"SAE folder {folder}: {name} has values that are not finite")
    return Sae(
        W_enc_DF=tensors["W_enc"].float(),
        b_enc_F=tensors["b_enc"].float(),
        W_dec_FD=tensors["W_dec"].float(),
        b_dec_D=tensors["b_dec"].float(),
        k=k,
        metadata=metadata,
    )
