"""The state of an SAE folder, for example one that another library wrote, so that it is evaluated like a run's."""

import jax
import jax.numpy as jnp
import numpy as np

from revelio_jax.config import SaeConfig
from revelio_jax.errors import InputError
from revelio_jax.sae import sharding
from revelio_jax.sae_folder.reader import SaeFolder
from revelio_jax.training.mixture import Mixture
from revelio_jax.training.step import State

ARCHITECTURES = {"topk": "topk", "jumprelu": "jumprelu", "standard": "dense"}  # SAELens's name -> config.sae's
SMALLEST = 1e-30  # a threshold; latents at or below 0 never fire


def sae_config(content: SaeFolder, options: SaeConfig) -> SaeConfig:
    """Return the settings with which :func:`state` has the latents of the folder.

    Of ``options`` the form and the dtype of products are used.
    """
    return SaeConfig(
        architecture=ARCHITECTURES[content.architecture],
        k=content.k or 1,
        dead_threshold=content.metadata.get("dead_threshold", 0.0),
        normalize="none",
        products="auto" if options.products in ("kernels", "threshold") else options.products,
        matmul_dtype=options.matmul_dtype,
    )


def state(content: SaeFolder, architecture: str, mesh: jax.sharding.Mesh) -> State:
    """Return the parameters of an SAE folder as a state without normalization, on the devices of ``mesh``."""
    latents, d = content.W_dec_FD.shape
    params = {
        "W_enc_FD": content.W_enc_DF.T,
        "b_enc_F": content.b_enc_F,
        "W_dec_FD": content.W_dec_FD,
        "b_dec_D": content.b_dec_D,
    }
    if content.threshold_F is not None:
        params["log_threshold_F"] = np.log(np.maximum(content.threshold_F, SMALLEST))
    specs = sharding.params(architecture)
    places = {name: jax.sharding.NamedSharding(mesh, specs[name]) for name in params}
    return State(
        step=jnp.zeros((), jnp.int32),
        params=jax.device_put({name: np.ascontiguousarray(x, np.float32) for name, x in params.items()}, places),
        opt_state=None,
        ema=None,
        rows_since_fired_F=jnp.zeros(latents, jnp.int32),
        threshold=jnp.zeros(()),
        mean_D=jnp.zeros(d),
        scale=jnp.ones(()),
        rounded=None,
    )


def check(folder: str, content: SaeFolder, mixture: Mixture) -> None:
    """Raise InputError if an SAE and the stores differ in width, hook point or model."""
    record, metadata = mixture.record(), content.metadata
    if (width := content.W_dec_FD.shape[1]) != record["d"]:
        raise InputError(f"--sae is {folder!r}, an SAE of width {width}; it must have width {record['d']}")
    compared = {
        "hook point": (metadata.get("site"), record["site"]),
        "model": (metadata.get("model_id"), record["model"].get("id")),
    }
    for name, (of_sae, of_store) in compared.items():
        if of_sae and of_store and of_sae != of_store:
            raise InputError(f"--sae is {folder!r}, an SAE with {name} {of_sae!r}; the store has {of_store!r}")
