"""Interpret and steer diffusion models with k-sparse autoencoders.

The names below are imported from their modules on first use, so ``import revelio_jax`` loads neither PyTorch nor JAX.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from revelio_jax.errors import InputError as InputError
    from revelio_jax.sae_folder.reader import SaeFolder as SaeFolder
    from revelio_jax.sae_folder.reader import read_folder as read_folder
    from revelio_jax.shipped import miniature as miniature
    from revelio_jax.steering import Concept as Concept
    from revelio_jax.steering import Steerer as Steerer
    from revelio_jax.steering import attach_vectors as attach_vectors
    from revelio_jax.steering import load_concept as load_concept
    from revelio_jax.steering import save_concept as save_concept
    from revelio_jax.steering.learned_concepts import saved_concepts as saved_concepts
    from revelio_jax.steering.sae import load_sae as load_sae
    from revelio_jax.store import open_store as open_store

    __version__: str

# Name -> the module that defines it.
_MODULES = {
    "Concept": "revelio_jax.steering",
    "InputError": "revelio_jax.errors",
    "SaeFolder": "revelio_jax.sae_folder.reader",
    "Steerer": "revelio_jax.steering",
    "attach_vectors": "revelio_jax.steering",
    "load_concept": "revelio_jax.steering",
    "load_sae": "revelio_jax.steering.sae",
    "miniature": "revelio_jax.shipped",
    "open_store": "revelio_jax.store",
    "read_folder": "revelio_jax.sae_folder.reader",
    "save_concept": "revelio_jax.steering",
    "saved_concepts": "revelio_jax.steering.learned_concepts",
}

__all__ = [
    "Concept",
    "InputError",
    "SaeFolder",
    "Steerer",
    "__version__",
    "attach_vectors",
    "load_concept",
    "load_sae",
    "miniature",
    "open_store",
    "read_folder",
    "save_concept",
    "saved_concepts",
]


def __getattr__(name: str) -> typing.Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("revelio_jax")
    if name not in _MODULES:
        raise AttributeError(f"module 'revelio_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
