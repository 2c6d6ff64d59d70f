"""The exported SAE folder in torch: what steering reads. Only JSON and safetensors are opened.

Three kinds are known by the files they have, and all become one :class:`Sae`:

    cfg.json, sae_weights.safetensors    this project, and SAELens from 6.0 on
    cfg.json, sae.safetensors            sparsify; many hook points are folders in one

What another library folds in at every call is folded into the tensors here, once and exactly.
"""

import dataclasses
import pathlib
import re
import typing

import torch

from revelio_jax.errors import InputError
from revelio_jax.sae_folder.untrusted import Shape, inside, one_line, read_json, read_tensors

CONFIG, WEIGHTS, SPARSIFY_WEIGHTS = "cfg.json", "sae_weights.safetensors", "sae.safetensors"
ARCHITECTURES = ("topk", "jumprelu", "standard")


@dataclasses.dataclass(frozen=True)
class Sae:
    """A k-sparse autoencoder in float32: W_enc_DF, b_enc_F, W_dec_FD, b_dec_D and its facts.

    ``k`` latents fire at most (topk), or those above ``threshold_F`` (jumprelu), or, where both are
    None, all that are positive (standard). ``metadata`` says which model and sites it belongs to.
    B batch, T tokens, D width, F latents.
    """

    W_enc_DF: torch.Tensor
    b_enc_F: torch.Tensor
    W_dec_FD: torch.Tensor
    b_dec_D: torch.Tensor
    k: int | None
    metadata: dict[str, typing.Any]
    threshold_F: torch.Tensor | None = None

    @property
    def d(self) -> int:
        return self.W_dec_FD.shape[1]

    @property
    def n_latents(self) -> int:
        return self.W_dec_FD.shape[0]

    @property
    def architecture(self) -> str:
        """As SAELens calls it: topk, jumprelu or standard."""
        return "topk" if self.k is not None else "standard" if self.threshold_F is None else "jumprelu"

    def to(self, device: torch.device) -> "Sae":
        tensors = {name: t for name, t in vars(self).items() if isinstance(t, torch.Tensor)}
        return dataclasses.replace(self, **{name: t.to(device) for name, t in tensors.items()})

    def pre_codes(self, x: torch.Tensor) -> torch.Tensor:
        """Latents [..., F] of activations [..., D] before selection: ReLU(W_enc (x - b_dec) + b_enc)."""
        return torch.relu((x.float() - self.b_dec_D) @ self.W_enc_DF + self.b_enc_F)

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """Latents [..., F]; with top-k, at most k of them are not zero."""
        z = self.pre_codes(x)
        if self.threshold_F is not None:
            return z * (z > self.threshold_F)
        if self.k is None:
            return z
        values, indices = z.topk(self.k, dim=-1)
        return torch.zeros_like(z).scatter(-1, indices, values)

    def directions(self, z: torch.Tensor) -> torch.Tensor:
        """W_dec z without the bias: a change of activations [..., D] for a change of latents."""
        return z @ self.W_dec_FD

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        return self.directions(self.codes(x)) + self.b_dec_D


def load_sae(folder: str | pathlib.Path, site: str | None = None) -> Sae:
    """Read an exported folder. Raises InputError with what is wrong with it.

    ``site`` is the hook point to steer, for folders that do not name one of this project's.
    """
    folder = pathlib.Path(folder)
    try:
        weights = _weights(folder)
        config = read_json(folder / CONFIG)
        metadata = _metadata(config, site, ours=weights == WEIGHTS)
        read = _read_sae_lens if weights == WEIGHTS else _read_sparsify
        return dataclasses.replace(read(folder / weights, config), metadata=metadata)
    except InputError as error:
        raise InputError(f"SAE folder {folder}: {str(error).removeprefix(f'{folder}/')}") from error


def _weights(folder: pathlib.Path) -> str:
    """The name of the file of weights; never one that the folder's own files name."""
    if not (folder / CONFIG).is_file():
        points = hook_points(folder)
        many = f"; it holds one for each of {one_line(', '.join(points))}: give one as subfolder="
        raise InputError(f"{CONFIG} is missing" + (many if points else "; python -m revelio_jax.export makes it"))
    for name in (WEIGHTS, SPARSIFY_WEIGHTS):
        if (folder / name).is_file():
            break
    else:
        raise InputError(f"{WEIGHTS} is missing; python -m revelio_jax.export makes it")
    for file in (CONFIG, name):
        if not inside(folder, folder / file):
            raise InputError(f"{file} is a link to a file that is not in the folder: copy it there")
    return name


def hook_points(folder: pathlib.Path) -> list[str]:
    """Folders in ``folder`` that hold an autoencoder each, as sparsify saves them."""
    return sorted(file.parent.name for file in folder.glob(f"*/{CONFIG}"))


def _metadata(config: dict[str, typing.Any], site: str | None, ours: bool) -> dict[str, typing.Any]:
    """What the folder says of its model and hook point; ``site`` where it does not."""
    metadata = config.get("metadata", {} if site or not ours else None)
    if not isinstance(metadata, dict):
        raise InputError(f"{CONFIG} lacks or misstates metadata")
    for name in ("site", "model_id", "family", "revision"):
        text = metadata.get(name, "")
        if not isinstance(text, str) or len(text) > 200 or not text.isprintable():
            raise InputError(f"{CONFIG}: metadata.{name} is {one_line(repr(text))}; it must be a short text")
    trained_on = metadata.get("site")
    if not trained_on and not site:
        raise InputError(
            f"{CONFIG} has no metadata.site: it does not say which hook point it was trained on; "
            "give it, as Steerer.from_pretrained(folder, site='clip.layer.9')"
        )
    if site and trained_on and site != trained_on:
        raise InputError(f"site is {site!r}, but it was trained on {trained_on!r}")
    return metadata | {"site": site or trained_on}


def _read_sae_lens(file: pathlib.Path, config: dict[str, typing.Any]) -> Sae:
    architecture = config.get("architecture")
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture is {one_line(repr(architecture))}; allowed: {', '.join(ARCHITECTURES)}")
    metadata = config.get("metadata", {})
    version = str(metadata.get("sae_lens_version"))
    if not metadata.get("site") and not re.match(r"[6-9]\.|\d\d+\.", version):  # of before, codes differ
        raise InputError(f"{CONFIG} is not of SAELens 6 or later: load it there and save it again")
    for name in ("normalize_activations", "reshape_activations"):
        if config.get(name, "none") != "none":
            raise InputError(f"{CONFIG}: {name} is {one_line(repr(config[name]))}; allowed: 'none'")
    apply_b_dec = _flag(config, "apply_b_dec_to_input", True)
    by_norm = _flag(config, "rescale_acts_by_decoder_norm", False)
    d, n = _size(config, "d_in"), _size(config, "d_sae")
    k = _active(config, n) if architecture == "topk" else None
    shapes: dict[str, Shape] = {"W_enc": (d, n), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
    if architecture == "jumprelu":
        shapes["threshold"] = (n,)
    tensors = read_tensors(file, shapes, why=f"{CONFIG} asks for")
    W_enc, b_enc, W_dec, b_dec = (tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    if by_norm and architecture == "topk":  # selects by z |W_dec|, which is what it calls z
        norm_F = W_dec.norm(dim=1)
        if not norm_F.all():
            raise InputError("W_dec has a row of length 0, by which latents are to be rescaled")
        W_enc, b_enc, W_dec = W_enc * norm_F, b_enc * norm_F, W_dec / norm_F[:, None]
    if not apply_b_dec:
        b_enc = b_enc + b_dec @ W_enc
    if not (W_enc.isfinite().all() and b_enc.isfinite().all() and W_dec.isfinite().all()):
        raise InputError("its tensors are too large to be folded in float32")
    return Sae(W_enc, b_enc, W_dec, b_dec, k, {}, tensors.get("threshold"))


def _read_sparsify(file: pathlib.Path, config: dict[str, typing.Any]) -> Sae:
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise InputError(f"{CONFIG}: activation is {one_line(repr(activation))}; allowed: 'topk'")
    for name in ("transcode", "skip_connection", "signed"):
        if _flag(config, name, False):
            raise InputError(f"{CONFIG}: {name} is true; steering reads autoencoders without it")
    d = _size(config, "d_in")
    n = _size(config, "num_latents") if config.get("num_latents") else d * _size(config, "expansion_factor")
    shapes: dict[str, Shape] = {
        "encoder.weight": (n, d),
        "encoder.bias": (n,),
        "W_dec": (n, d),
        "b_dec": (d,),
    }
    k = _active(config, n)
    W_enc, b_enc, W_dec, b_dec = read_tensors(file, shapes, why=f"{CONFIG} asks for").values()
    return Sae(W_enc.T.contiguous(), b_enc, W_dec, b_dec, k, {})


def _size(config: dict[str, typing.Any], key: str) -> int:
    """A positive integer; true and 3.0 are none."""
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise InputError(f"{CONFIG} lacks or misstates {key}: it is {one_line(repr(value))}, not a count")
    return value


def _active(config: dict[str, typing.Any], n: int) -> int:
    k = config.get("k")
    if type(k) is not int or not 0 < k <= n:
        raise InputError(f"k is {one_line(repr(k))}; it must be an integer between 1 and d_sae = {n}")
    return k


def _flag(config: dict[str, typing.Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise InputError(f"{CONFIG}: {key} is {one_line(repr(value))}; allowed: true, false")
    return value
