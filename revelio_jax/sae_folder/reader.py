"""Read an SAE folder into numpy. The folder is untrusted: only JSON and safetensors are opened.

Two layouts are supported:

    cfg.json, sae_weights.safetensors    this project, and SAELens from 6.0 on
    cfg.json, sae.safetensors            sparsify and SAeUron; one folder may hold a subfolder per hook point

Scalings that SAELens applies at each call are folded into the tensors once and exactly. Fields and tensors that are not
known to be harmless are refused by name.
"""

import dataclasses
import pathlib
import re
import typing

import numpy as np

from revelio_jax import checksums
from revelio_jax.errors import InputError
from revelio_jax.sae_folder import fields
from revelio_jax.sae_folder.card import FORMAT_VERSION
from revelio_jax.sae_folder.cfg import SaeMetadata
from revelio_jax.sae_folder.untrusted import Shape, inside, one_line, read_header, read_json, read_tensors

CONFIG, WEIGHTS, SPARSIFY_WEIGHTS = "cfg.json", "sae_weights.safetensors", "sae.safetensors"
ARCHITECTURES = ("topk", "jumprelu", "standard")


@dataclasses.dataclass(frozen=True, eq=False)
class SaeFolder:
    """The content of an SAE folder: float32 arrays, the architecture and the metadata. D width, F latents.

    ``k`` is set for topk only, ``threshold_F`` for jumprelu only. ``weights`` is the path of the safetensors file.
    ``metadata`` holds the model and the hook point that the SAE was trained on.
    """

    W_enc_DF: np.ndarray
    b_enc_F: np.ndarray
    W_dec_FD: np.ndarray
    b_dec_D: np.ndarray
    architecture: str
    k: int | None
    threshold_F: np.ndarray | None
    metadata: SaeMetadata
    weights: pathlib.Path


def read_folder(folder: str | pathlib.Path, site: str | None = None, needs_site: bool = True) -> SaeFolder:
    """Read an SAE folder and check it.

    ``site`` is the hook point if the metadata does not name one. Raise InputError, with the file and the field, if a
    file is missing or malformed, or if the metadata names another hook point than ``site``. With ``needs_site``, also
    raise it if neither names one.
    """
    folder = pathlib.Path(folder)
    weights = _weights_file(folder)
    file = folder / CONFIG
    config = read_json(file)
    is_sae_lens = weights.name == WEIGHTS
    metadata = _metadata(file, config, site, needs_site, optional=bool(site) or not needs_site or not is_sae_lens)
    read = _read_sae_lens if is_sae_lens else _read_sparsify
    return read(file, config, weights, metadata)


def hook_points(folder: pathlib.Path) -> list[str]:
    """Return the names of the subfolders that each hold an SAE, as sparsify saves them."""
    return sorted(file.parent.name for file in folder.glob(f"*/{CONFIG}"))


def _weights_file(folder: pathlib.Path) -> pathlib.Path:
    """Return the path of the weights. Its name is never read from a file of the folder."""
    if not (folder / CONFIG).is_file():
        if points := hook_points(folder):
            raise InputError(
                f"{folder}/{CONFIG} is missing, but subfolders hold SAEs; pass one of them as subfolder=: "
                f"{one_line(', '.join(points))}"
            )
        raise _missing(folder, CONFIG)
    for name in (WEIGHTS, SPARSIFY_WEIGHTS):
        if (folder / name).is_file():
            break
    else:
        raise _missing(folder, WEIGHTS)
    for file in (CONFIG, name):
        if not inside(folder, folder / file):
            raise InputError(f"{folder}/{file} is a link to a file outside of the folder; copy that file there")
    return folder / name


def _missing(folder: pathlib.Path, name: str) -> InputError:
    return InputError(fields.missing_message(folder, name, [file.name for file in folder.glob("*")]))


def _metadata(
    file: pathlib.Path, config: dict[str, typing.Any], site: str | None, needs_site: bool, optional: bool
) -> SaeMetadata:
    """Return the metadata of cfg.json, with ``site`` added if it names no hook point."""
    metadata = config.get("metadata", {} if optional else None)
    if not isinstance(metadata, dict):
        raise InputError(f"{file}: metadata is {one_line(repr(metadata))}; it must be an object")
    version = metadata.get("format_version", FORMAT_VERSION)  # other libraries write none
    if version != FORMAT_VERSION:
        raise InputError(
            f"{file}: metadata.format_version is {one_line(repr(version))}; this version of revelio_jax reads "
            f"{FORMAT_VERSION}: install the one that wrote the folder"
        )
    for name in ("site", "model_id", "family", "revision"):
        text = "" if metadata.get(name) is None else metadata[name]
        if not isinstance(text, str) or len(text) > 200 or not text.isprintable():
            raise InputError(
                f"{file}: metadata.{name} is {one_line(repr(text))}; it must be at most 200 printable characters"
            )
    trained_on = metadata.get("site")
    if needs_site and not trained_on and not site:
        raise InputError(
            f"{file}: metadata.site is missing; pass the hook point of this SAE, for example "
            "Steerer.from_pretrained(folder, site='clip.layer.9')"
        )
    if site and trained_on and site != trained_on:
        raise InputError(f"{file}: site is {site!r}, but the SAE was trained on {trained_on!r}")
    return typing.cast(SaeMetadata, metadata | {"site": site or trained_on} if site or trained_on else metadata)


def _read_sae_lens(
    file: pathlib.Path, config: dict[str, typing.Any], weights: pathlib.Path, metadata: SaeMetadata
) -> SaeFolder:
    architecture = config.get("architecture")
    if architecture not in ARCHITECTURES:
        raise InputError(f"{file}: architecture is {one_line(repr(architecture))}; allowed: {', '.join(ARCHITECTURES)}")
    version = str(metadata.get("sae_lens_version"))
    if not config.get("metadata", {}).get("site") and not re.match(r"[6-9]\.|\d\d+\.", version):
        raise InputError(
            f"{file}: metadata.sae_lens_version is {one_line(version)}; load the SAE in SAELens 6 or later and save it "
            "again, because older versions define latents differently"
        )
    expected = read_header(weights)[0].get(checksums.CFG)  # only of our exports
    if expected and expected != fields.cfg_sha256(config):
        raise InputError(f"{file} does not match {weights.name}: it was damaged or edited; run revelio export again")
    fields.refuse_unknown(file, config, fields.SAE_LENS)
    for name in ("normalize_activations", "reshape_activations"):  # both change each row by its own values
        if config.get(name, "none") != "none":
            raise InputError(f"{file}: {name} is {one_line(repr(config[name]))}; allowed: 'none'")
    subtracts_b_dec = _flag(file, config, "apply_b_dec_to_input", True)
    scales_by_norm = _flag(file, config, "rescale_acts_by_decoder_norm", False)
    d, n = _count(file, config, "d_in"), _count(file, config, "d_sae")
    k = _top_k(file, config, n) if architecture == "topk" else None
    shapes: dict[str, Shape] = {"W_enc": (d, n), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
    if architecture == "jumprelu":
        shapes["threshold"] = (n,)
    fields.refuse_extra_tensors(weights, shapes)
    tensors = read_tensors(weights, shapes, required_by=f"{CONFIG} requires")
    W_enc, b_enc, W_dec, b_dec = (tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    with np.errstate(over="ignore", invalid="ignore"):  # values that overflow are refused below
        if scales_by_norm and architecture == "topk":  # SAELens then selects by z |W_dec|
            norm_F = np.linalg.norm(W_dec, axis=1)
            if not norm_F.all():
                raise InputError(f"{weights}: W_dec has a row of norm 0; latents cannot be rescaled by it")
            W_enc, b_enc, W_dec = W_enc * norm_F, b_enc * norm_F, W_dec / norm_F[:, None]
        if not subtracts_b_dec:
            b_enc = b_enc + b_dec @ W_enc
    if not all(np.isfinite(array).all() for array in (W_enc, b_enc, W_dec)):
        raise InputError(f"{weights}: the tensors are too large to be folded in float32")
    return SaeFolder(W_enc, b_enc, W_dec, b_dec, architecture, k, tensors.get("threshold"), metadata, weights)


def _read_sparsify(
    file: pathlib.Path, config: dict[str, typing.Any], weights: pathlib.Path, metadata: SaeMetadata
) -> SaeFolder:
    fields.refuse_unknown(file, config, fields.SPARSIFY)
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise InputError(f"{file}: activation is {one_line(repr(activation))}; allowed: 'topk'")
    for name in ("transcode", "skip_connection", "signed", "input_unit_norm"):
        if _flag(file, config, name, False):
            raise InputError(f"{file}: {name} is true; it must be false")
    d = _count(file, config, "d_in")
    n = (
        _count(file, config, "num_latents")
        if config.get("num_latents")
        else d * _count(file, config, "expansion_factor")
    )
    k = _top_k(file, config, n)
    shapes: dict[str, Shape] = {"encoder.weight": (n, d), "encoder.bias": (n,), "W_dec": (n, d), "b_dec": (d,)}
    fields.refuse_extra_tensors(weights, shapes)
    W_enc_FD, b_enc, W_dec, b_dec = read_tensors(weights, shapes, required_by=f"{CONFIG} requires").values()
    return SaeFolder(np.ascontiguousarray(W_enc_FD.T), b_enc, W_dec, b_dec, "topk", k, None, metadata, weights)


def _count(file: pathlib.Path, config: dict[str, typing.Any], key: str) -> int:
    """Return a field that must be a positive integer; true and 3.0 are refused."""
    value = config.get(key)
    if type(value) is not int or not 0 < value < 1 << 48:
        raise InputError(f"{file}: {key} is {one_line(repr(value))}; it must be an integer from 1 to {(1 << 48) - 1}")
    return value


def _top_k(file: pathlib.Path, config: dict[str, typing.Any], n: int) -> int:
    k = config.get("k")
    if type(k) is not int or not 0 < k <= n:
        raise InputError(f"{file}: k is {one_line(repr(k))}; it must be an integer between 1 and d_sae, {n}")
    return k


def _flag(file: pathlib.Path, config: dict[str, typing.Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise InputError(f"{file}: {key} is {one_line(repr(value))}; allowed: true, false")
    return value
