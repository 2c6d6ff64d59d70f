"""The latents that are interpreted: those of an exported SAE folder, or the neurons themselves. JAX.

Latents are in the folder's units, so that they are those of steering:

    topk        the k largest of ReLU(W_enc (x - b_dec) + b_enc)
    jumprelu    those of them that are above their threshold
    standard    all of them
    neurons     ReLU(x - mean), with the mean of the store: what a coordinate has of its own. A latent is 0
                or more, so a neuron, whose sign is its own, counts where it is above its mean; without the
                mean those far from 0 would always fire, or never.

A latent fires where its value is above 0; what top-k selects with value 0 does not.
"""

import dataclasses
import functools
import hashlib
import pathlib
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from revelio_jax.errors import InputError
from revelio_jax.sae import sparse, topk
from revelio_jax.sae_folder import reader
from revelio_jax.store import SiteReader, Store

NEURONS = "neurons"
SLOTS = 64  # of a row at first, where the number of latents that fire has no bound; doubled as needed

Codes = tuple[np.ndarray, np.ndarray]
"""Values [B, K] float32, 0 where nothing fires, and indices [B, K] int32 of their latents."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dictionary:
    """F latents of rows of width d; arrays are float32.

    ``k`` fire at most on a row (topk), or, where it is None, those above ``threshold_F``. Neurons have no
    matrices. ``sha256`` is of the file of weights, ``metadata`` that of cfg.json.
    """

    architecture: str
    k: int | None
    b_dec_D: np.ndarray
    threshold_F: np.ndarray
    W_enc_DF: np.ndarray | None = None
    b_enc_F: np.ndarray | None = None
    W_dec_FD: np.ndarray | None = None
    folder: str = ""
    sha256: str = NEURONS
    metadata: dict[str, typing.Any] = dataclasses.field(default_factory=dict)

    @property
    def latents(self) -> int:
        return len(self.threshold_F)

    @property
    def gain(self) -> float:
        """The median norm of the encoder's rows: how large values are, beside rows of norm 1."""
        return 1.0 if self.W_enc_DF is None else float(np.median(np.linalg.norm(self.W_enc_DF, axis=0)))


def neurons(site: SiteReader) -> Dictionary:
    """Every coordinate of a site as a latent."""
    return Dictionary(NEURONS, None, site.mean.astype(np.float32), np.zeros(site.d, np.float32))


def load(folder: str) -> Dictionary:
    """Read an SAE folder. Raise InputError, with the file and the field, if it is missing or malformed."""
    content = reader.read_folder(folder, needs_site=False)
    latents = len(content.b_enc_F)
    threshold_F = content.threshold_F if content.threshold_F is not None else np.zeros(latents, np.float32)
    return Dictionary(
        content.architecture,
        content.k,
        content.b_dec_D,
        threshold_F,
        content.W_enc_DF,
        content.b_enc_F,
        content.W_dec_FD,
        folder,
        _sha256(content.weights),
        content.metadata,
    )


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(dictionary: Dictionary, store: Store, site: SiteReader) -> None:
    """Raise InputError where an SAE is not of the store's site, width, model, or kind of value."""
    said, model = dictionary.metadata, store.manifest.get("model", {})
    if said.get("site") and said["site"] != site.name:
        raise InputError(
            f"config.data.site is {site.name!r}, but the SAE {dictionary.folder} was trained on {said['site']!r}"
        )
    if len(dictionary.b_dec_D) != site.d:
        raise InputError(
            f"the SAE {dictionary.folder} has width {len(dictionary.b_dec_D)}, "
            f"but {site.name} of store {store.location} has {site.d}"
        )
    facts = {
        "family": (said.get("family"), model.get("family")),
        "model": (said.get("model_id"), model.get("id")),
        "revision": (said.get("revision"), model.get("revision")),
        "value": (said.get("value"), store.manifest.get("extract", {}).get("value")),
    }
    for name, (of_sae, of_store) in facts.items():
        if name == "model" and of_sae and of_store:
            of_sae, of_store = (str(pathlib.PurePath(text)) for text in (of_sae, of_store))
        if of_sae and of_store and of_sae != of_store:
            raise InputError(
                f"the SAE {dictionary.folder} is of the {name} {of_sae!r}, but store {store.location} of {of_store!r}"
            )


def make_encode(
    dictionary: Dictionary, batch_size: int, encode_chunk: int | None = None
) -> Callable[[np.ndarray], Callable[[], Codes]]:
    """``encode(x_ND)`` sets the devices to work; what it returns waits for the code of the N rows.

    x_ND are at most ``batch_size`` rows as stored, which may not change before the code is there. All
    local devices take part, each with a part of the rows. A row has k slots, or, where no k bounds it, as
    many as the fullest row so far needed, in powers of 2 (a batch that needs more is encoded again); from
    half of the latents on there is a slot for each. ``encode_chunk`` is that of config.sae.
    """
    devices = jax.local_devices()
    rows = -(-batch_size // len(devices)) * len(devices)
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    specs = {"b_dec_D": P(), "threshold_F": P(), "W_enc_FD": P(), "b_enc_F": P()}
    params = {"b_dec_D": dictionary.b_dec_D, "threshold_F": dictionary.threshold_F}
    if dictionary.W_enc_DF is not None:
        params |= {"W_enc_FD": np.ascontiguousarray(dictionary.W_enc_DF.T), "b_enc_F": dictionary.b_enc_F}
    params = jax.device_put(params, NamedSharding(mesh, P()))
    latents, k = dictionary.latents, dictionary.k
    every_F = np.arange(latents, dtype=np.int32)
    slots = k or (SLOTS if latents > 2 * SLOTS else latents)
    arriving = NamedSharding(mesh, P("data", None))

    @functools.partial(jax.jit, static_argnums=2)
    def start(params, x_BD, slots):
        local = functools.partial(_encode, k=k, slots=slots, encode_chunk=encode_chunk)
        by_rows = P("data", None), P("data", None), P("data")
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=({name: specs[name] for name in params}, P("data", None)),
            out_specs=by_rows,
            check_vma=False,  # top_k branches by platform, of which the types of variance know nothing
        )(params, x_BD)

    def encode(x_ND):
        count = len(x_ND)
        if count < rows:  # one shape, one compilation
            x_ND = np.concatenate([x_ND, np.zeros((rows - count, x_ND.shape[1]), x_ND.dtype)])
        x_BD = jax.device_put(x_ND, arriving)
        started = start(params, x_BD, slots)

        def wait():
            nonlocal slots
            values_BK, indices_BK, fires_B = started
            while (most := int(np.asarray(fires_B)[:count].max(initial=0))) > values_BK.shape[1]:
                slots = max(slots, 1 << (most - 1).bit_length())
                slots = slots if 2 * slots < latents else latents
                values_BK, indices_BK, fires_B = start(params, x_BD, slots)
            values_NK = np.asarray(values_BK)[:count]
            if values_NK.shape[1] == latents and k is None:
                return values_NK, np.broadcast_to(every_F, values_NK.shape)
            return values_NK, np.asarray(indices_BK)[:count]

        return wait

    return encode


def _encode(params, x_BD, *, k, slots, encode_chunk):
    """Values and indices [B, K], and how many latents fire on each row [B]."""
    x_BD = x_BD.astype(jnp.float32) - params["b_dec_D"]
    # float32 as in steering, also where a device would rather multiply shorter numbers.
    with jax.default_matmul_precision("highest"):
        if k:
            values_BK, indices_BK = sparse.candidates(
                x_BD, params["W_enc_FD"], params["b_enc_F"], slots, "float32", encode_chunk
            )
            return values_BK, indices_BK, (values_BK > 0).sum(1)
        if "W_enc_FD" in params:
            x_BD = sparse.product(x_BD, params["W_enc_FD"].T, "float32") + params["b_enc_F"]
    z_BF = jnp.where(x_BD > params["threshold_F"], jax.nn.relu(x_BD), 0)
    fires_B = (z_BF > 0).sum(1)
    if slots == z_BF.shape[1]:
        return z_BF, jnp.zeros((len(z_BF), 0), jnp.int32), fires_B
    return *topk.top_k(z_BF, slots), fires_B
