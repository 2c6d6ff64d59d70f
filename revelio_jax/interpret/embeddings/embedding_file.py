"""The embeddings of the samples of a store by an independent model, in a file of the run.

    runs/<name>/embeddings.safetensors    embedding, float32 [samples, E], NaN for a sample that cannot be embedded;
                                          the metadata names the store and the model

PyTorch computes them and JAX uses them, so they meet in this file.
"""

import hashlib
import pathlib

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from revelio_jax import files, shipped
from revelio_jax.errors import InputError

NAME = "embeddings.safetensors"
VERSION = "1"  # of the way in which samples are embedded
FIELD = "config.interpret.embedder"
JUDGE = "judge.safetensors"
# The files of a model that decide its embeddings.
USED = ("*.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json", "vocab.txt")


def model_folder(embedder: str) -> pathlib.Path:
    """Return the folder of the model. Raise InputError if it has neither a config.json nor a miniature's judge."""
    folder = pathlib.Path(shipped.locate(embedder))
    if not any((folder / name).is_file() for name in ("config.json", JUDGE)):
        raise InputError(
            f"{FIELD} is {embedder!r}; it must be the folder of a model of transformers, with config.json, or of a "
            f"miniature's judge, with {JUDGE}"
        )
    return folder


def fingerprint(embedder: str) -> str:
    """Return a hash of the files of the model. Raise InputError as :func:`model_folder`, or without safetensors."""
    folder = model_folder(embedder)
    used = sorted({path for pattern in USED for path in folder.glob(pattern) if path.is_file()})
    if not any(path.suffix == ".safetensors" for path in used):
        raise InputError(f"{FIELD} is {embedder!r}; its weights must be in a .safetensors file")
    hashes = [VERSION, *(f"{path.name} {files.sha256(path)}" for path in used)]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def read(path: pathlib.Path, store: str, model: str) -> np.ndarray | None:
    """Return the embeddings in a file, or None if it is missing, broken, or of another store or model.

    ``store`` and ``model`` are fingerprints.
    """
    try:
        with safe_open(path, "np") as file:
            if (file.metadata() or {}) != {"store": store, "model": model}:
                return None
            embedding_NE = file.get_tensor("embedding")
    except (OSError, SafetensorError):
        return None
    return embedding_NE if embedding_NE.ndim == 2 else None


def write(path: pathlib.Path, embedding_NE: np.ndarray, store: str, model: str) -> None:
    """Write the embeddings in one step."""
    with files.replacing(path) as part:
        save_file({"embedding": np.ascontiguousarray(embedding_NE)}, part, {"store": store, "model": model})
