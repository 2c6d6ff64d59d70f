"""Download and publish SAE folders on the Hugging Face hub. Only the files of an SAE folder are transferred."""

import json
import pathlib
import shutil
import tempfile

import huggingface_hub
from huggingface_hub import errors
from safetensors.torch import save_file

from revelio_jax.errors import InputError
from revelio_jax.sae_folder.card import HUB_ID, card, cfg_json
from revelio_jax.sae_folder.fields import PICKLES, missing_message
from revelio_jax.sae_folder.reader import CONFIG, SPARSIFY_WEIGHTS, WEIGHTS, hook_points
from revelio_jax.sae_folder.untrusted import one_line
from revelio_jax.steering.sae import Sae

FILES = (CONFIG, WEIGHTS, SPARSIFY_WEIGHTS, "README.md")


def find(
    folder: str | pathlib.Path, revision: str | None = None, subfolder: str = "", token: str | None = None
) -> pathlib.Path:
    """Return the path of a local SAE folder, or of the downloaded copy of the hub id ``owner/name``.

    Raise InputError if the download fails or an argument is not valid.
    """
    inner = pathlib.PurePosixPath(subfolder)
    if inner.is_absolute() or ".." in inner.parts:
        raise InputError(f"subfolder is {subfolder!r}; it must be a folder inside {str(folder)!r}")
    if isinstance(folder, pathlib.Path) or pathlib.Path(folder).exists() or not HUB_ID.fullmatch(folder):
        if revision:
            raise InputError(f"revision is {revision!r}, but {str(folder)!r} is not a hub id (owner/name)")
        return pathlib.Path(folder, inner)
    patterns = [str(inner / name) for name in FILES] + [f"*/{CONFIG}"] * (not subfolder)
    files: list[str] = []
    try:
        snapshot = huggingface_hub.snapshot_download(folder, revision=revision, allow_patterns=patterns, token=token)
        has_weights = any(pathlib.Path(snapshot, inner, name).is_file() for name in (WEIGHTS, SPARSIFY_WEIGHTS))
        if not has_weights and not hook_points(pathlib.Path(snapshot)):
            files = huggingface_hub.HfApi(token=token).list_repo_files(folder, revision=revision)
    except Exception as error:  # network, proxy, login and cache raise errors of different classes
        raise InputError(
            f"{folder!r} is not a local folder, and the download from the hub failed ({type(error).__name__}): "
            f"{_advice(error, revision)}"
        ) from error
    if any(file.endswith(PICKLES) for file in files):
        raise InputError(missing_message(folder, str(inner / WEIGHTS), files))
    return pathlib.Path(snapshot, inner)


def push(
    sae: Sae,
    repo_id: str,
    *,
    private: bool | None = None,
    license: str = "unknown",
    token: str | None = None,
) -> str:
    """Publish an SAE with a model card; return the address of the commit.

    All files are written from the SAE in memory, so no other file of a folder is uploaded. Raise InputError if the
    upload fails.
    """
    if not HUB_ID.fullmatch(repo_id):
        raise InputError(f"repo_id is {repo_id!r}; it must be owner/name")
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_sae(sae, pathlib.Path(folder), repo_id, license)
            api = huggingface_hub.HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Add the autoencoder"))
    except Exception as error:  # the same classes as in find
        raise InputError(
            f"{repo_id!r} cannot be published ({type(error).__name__}: {one_line(error, 200)}); check the network, or "
            "log in with `hf auth login` and a token with write access"
        ) from error


def write_sae(sae: Sae, folder: pathlib.Path, name: str = "FOLDER", license: str = "unknown") -> None:
    """Write cfg.json, the weights and the model card into ``folder``, in SAELens's layout."""
    tensors = {"W_enc": sae.W_enc_DF, "b_enc": sae.b_enc_F, "W_dec": sae.W_dec_FD, "b_dec": sae.b_dec_D}
    if sae.threshold_F is not None:
        tensors["threshold"] = sae.threshold_F
    cfg = cfg_json(sae.architecture, sae.d, sae.n_latents, sae.k, sae.metadata)
    save_file({key: t.cpu().contiguous() for key, t in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(cfg, indent=1) + "\n")
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors creates files that other users cannot read
    (folder / "README.md").write_text(card(cfg, name, license))


def _advice(error: Exception, revision: str | None) -> str:
    if isinstance(error, errors.GatedRepoError):
        return "accept its license on the hub and log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "check the name, log in with `hf auth login` if it is private, or pass a folder"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"unknown revision {revision!r}"
    return "check the network, or pass the folder of a downloaded copy"
