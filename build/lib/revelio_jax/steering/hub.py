"""Autoencoders from the Hugging Face hub and to it: a folder's three small kinds of file, no others."""

import json
import pathlib
import shutil
import tempfile
import typing

import huggingface_hub
from huggingface_hub import errors
from safetensors.torch import save_file

from revelio_jax.errors import InputError
from revelio_jax.sae_folder.card import HUB_ID, card, cfg_json
from revelio_jax.sae_folder.reader import CONFIG, SPARSIFY_WEIGHTS, WEIGHTS
from revelio_jax.sae_folder.untrusted import one_line
from revelio_jax.steering.sae import Sae

FILES = (CONFIG, WEIGHTS, SPARSIFY_WEIGHTS, "README.md")


def find(
    folder: str | pathlib.Path, revision: str | None = None, subfolder: str = "", token: str | None = None
) -> pathlib.Path:
    """Where an SAE folder is: as given, or the hub's copy of ``owner/name``. Raises InputError."""
    inner = pathlib.PurePosixPath(subfolder)
    if inner.is_absolute() or ".." in inner.parts:
        raise InputError(f"subfolder is {subfolder!r}; it must be a folder inside of {str(folder)!r}")
    if isinstance(folder, pathlib.Path) or pathlib.Path(folder).exists() or not HUB_ID.fullmatch(folder):
        if revision:
            raise InputError(f"revision is {revision!r}, but {str(folder)!r} is no hub id (owner/name)")
        return pathlib.Path(folder, inner)
    patterns = [str(inner / name) for name in FILES] + [f"*/{CONFIG}"] * (not subfolder)
    try:
        snapshot = huggingface_hub.snapshot_download(folder, revision=revision, allow_patterns=patterns, token=token)
    except Exception as error:  # network, proxy, login, cache: each has its own class
        raise InputError(
            f"{folder!r} is no folder here and does not come from the hub ({type(error).__name__}): "
            f"{_advice(error, revision)}"
        ) from error
    return pathlib.Path(snapshot, inner)


def push(
    sae: Sae,
    repo_id: str,
    *,
    private: bool | None = None,
    licence: str = "unknown",
    token: str | None = None,
) -> str:
    """Publish an autoencoder with its card; returns the address of the commit. Raises InputError.

    The files are written anew from what was read, so nothing else of a folder leaves the machine.
    """
    if not HUB_ID.fullmatch(repo_id):
        raise InputError(f"repo_id is {repo_id!r}; it must be owner/name")
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_sae(sae, pathlib.Path(folder), repo_id, licence)
            api = huggingface_hub.HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Add the autoencoder"))
    except Exception as error:  # as above
        raise InputError(
            f"{repo_id!r} cannot be published ({type(error).__name__}: {one_line(error, 200)}); log in with "
            "`hf auth login`, with a token that may write there, or check the network"
        ) from error


def write_sae(sae: Sae, folder: pathlib.Path, name: str = "FOLDER", licence: str = "unknown") -> None:
    """Write cfg.json, the weights and the card into ``folder``, which SAELens reads too."""
    tensors = {"W_enc": sae.W_enc_DF, "b_enc": sae.b_enc_F, "W_dec": sae.W_dec_FD, "b_dec": sae.b_dec_D}
    if sae.threshold_F is not None:
        tensors["threshold"] = sae.threshold_F
    cfg: dict[str, typing.Any] = cfg_json(sae.architecture, sae.d, sae.n_latents, sae.k, sae.metadata)
    save_file({key: t.cpu().contiguous() for key, t in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(cfg, indent=1) + "\n")
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors makes files that nobody else can read
    (folder / "README.md").write_text(card(cfg, name, licence))


def _advice(error: Exception, revision: str | None) -> str:
    if isinstance(error, errors.GatedRepoError):
        return "accept its licence on the hub and log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "check the name, log in with `hf auth login` if it is private, or give a folder"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}"
    return "check the network, or give the folder of a downloaded copy"
