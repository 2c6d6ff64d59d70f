"""The latents to interpret: the latents of an SAE folder, or the neurons of a hook point. Uses JAX.

Values of latents are in the units of the SAE folder, as in steering:

    topk        the k largest of z = ReLU(W_enc (x - b_dec) + b_enc)
    jumprelu    z if it exceeds the threshold of the latent, otherwise 0
    standard    z
    neurons     ReLU(x - mean), with the mean over the store. Without subtracting it, a neuron whose mean is far from 0
                would fire always or never.
    random      the k largest of ReLU(W (x - mean)) with random unit rows of W: a dictionary of the size and k of the
                SAE that was never trained

A latent fires on a row if its value is above 0, so a latent that top-k selects with value 0 does not fire.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from revelio_jax import files
from revelio_jax.errors import InputError
from revelio_jax.sae import releases, sparse, topk
from revelio_jax.sae_folder import reader
from revelio_jax.sae_folder.cfg import SaeMetadata
from revelio_jax.store import SiteReader, Store

NEURONS, RANDOM = "neurons", "random"
SLOTS = 64  # initial slots per row if any number of latents can fire; doubled as needed

SlotCodes = tuple[np.ndarray, np.ndarray]
"""Values [B, K] float32, 0 in unused slots, and the latents of the slots [B, K] int32."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dictionary:
    """F latents on rows of width D; arrays are float32.

    With ``k`` (topk) at most ``k`` latents fire on a row. If it is None, a latent fires above its threshold in
    ``threshold_F``. Neurons have no matrices. ``sha256`` is the hash of the file of weights, ``metadata`` the
    metadata of cfg.json.
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
    metadata: SaeMetadata = dataclasses.field(default_factory=SaeMetadata)

    @property
    def n_latents(self) -> int:
        return len(self.threshold_F)

    @property
    def gain(self) -> float:
        """Return the median norm of the encoder columns: the typical value of a latent on a row of norm 1."""
        return 1.0 if self.W_enc_DF is None else float(np.median(np.linalg.norm(self.W_enc_DF, axis=0)))


def neurons(site: SiteReader) -> Dictionary:
    """Return a dictionary whose latents are the coordinates of the activations at a hook point."""
    return Dictionary(NEURONS, None, site.mean.astype(np.float32), np.zeros(site.d, np.float32))


def random(like: Dictionary, site: SiteReader) -> Dictionary:
    """Return a random dictionary with the number of latents and the k of ``like``. The same sizes give the same rows.

    Raise InputError if ``like`` has no k, because any number of its latents may fire.
    """
    k = like.k or like.metadata.get("k")
    if not k:
        raise InputError(f"config.interpret.sae is {RANDOM!r}; the SAE {like.folder} has no k to compare it with")
    random_FD = np.random.default_rng(0).standard_normal((like.n_latents, site.d), np.float32)
    W_FD = random_FD / np.linalg.norm(random_FD, axis=1, keepdims=True)
    zero_F = np.zeros(like.n_latents, np.float32)
    sha256 = f"{RANDOM} {like.n_latents} {k}"
    return Dictionary(RANDOM, k, site.mean.astype(np.float32), zero_F, W_FD.T, zero_F, W_FD, sha256=sha256)


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
        files.sha256(content.weights),
        content.metadata,
    )


def check(dictionary: Dictionary, store: Store, site: SiteReader) -> None:
    """Raise InputError if an SAE and the store differ in hook point, width, model or value."""
    metadata, model = dictionary.metadata, store.manifest.get("model", {})
    trained_on = metadata.get("site")
    if trained_on and trained_on != site.name:
        raise InputError(
            f"config.data.site is {site.name!r}, but the SAE {dictionary.folder} was trained on {trained_on!r}"
        )
    if len(dictionary.b_dec_D) != site.d:
        raise InputError(
            f"the SAE {dictionary.folder} has width {len(dictionary.b_dec_D)}, "
            f"but hook point {site.name} of store {store.location} has width {site.d}"
        )
    compared = {
        "family": (metadata.get("family"), model.get("family")),
        "model": (metadata.get("model_id"), model.get("id")),
        "revision": (metadata.get("revision"), model.get("revision")),
        "value": (metadata.get("value"), store.manifest.get("extract", {}).get("value")),
    }
    for name, (of_sae, of_store) in compared.items():
        if name == "model" and of_sae and of_store:
            of_sae, of_store = (str(pathlib.PurePath(text)) for text in (of_sae, of_store))
        if of_sae and of_store and of_sae != of_store:
            raise InputError(
                f"the SAE {dictionary.folder} has {name} {of_sae!r}, but store {store.location} has {of_store!r}"
            )


def make_encode(
    dictionary: Dictionary, batch_size: int, encode_chunk: int | None = None
) -> Callable[[np.ndarray], Callable[[], SlotCodes]]:
    """Return ``encode(x_ND)``, which starts encoding N rows and returns a function that waits for their codes.

    x_ND are at most ``batch_size`` rows in the stored dtype; they must not change before the codes are returned.
    The rows are split over all local devices. A row has k slots. Without k, the number of slots is a power of 2 that
    fits the fullest row so far; a batch that needs more slots is encoded again. If half of the latents need slots,
    every latent gets one. ``encode_chunk`` is config.sae.encode_chunk. Raise InputError if this release of JAX must not
    be used on the devices.
    """
    devices = jax.local_devices()
    releases.check(devices)
    rows = -(-batch_size // len(devices)) * len(devices)
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    specs = {"b_dec_D": P(), "threshold_F": P(), "W_enc_FD": P(), "b_enc_F": P()}
    params = {"b_dec_D": dictionary.b_dec_D, "threshold_F": dictionary.threshold_F}
    if dictionary.W_enc_DF is not None:
        params |= {"W_enc_FD": np.ascontiguousarray(dictionary.W_enc_DF.T), "b_enc_F": dictionary.b_enc_F}
    params = jax.device_put(params, NamedSharding(mesh, P()))
    latents, k = dictionary.n_latents, dictionary.k
    every_F = np.arange(latents, dtype=np.int32)
    slots = k or (SLOTS if latents > 2 * SLOTS else latents)
    by_rows = NamedSharding(mesh, P("data", None))

    @functools.partial(jax.jit, static_argnums=2)
    def start(params, x_BD, slots):
        local = functools.partial(_encode, k=k, slots=slots, encode_chunk=encode_chunk)
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=({name: specs[name] for name in params}, P("data", None)),
            out_specs=(P("data", None), P("data", None), P("data")),
            check_vma=False,  # this check does not support top_k, which branches by platform
        )(params, x_BD)

    def encode(x_ND):
        count = len(x_ND)
        if count < rows:  # pad to one shape, which is compiled once
            x_ND = np.concatenate([x_ND, np.zeros((rows - count, x_ND.shape[1]), x_ND.dtype)])
        x_BD = jax.device_put(x_ND, by_rows)
        result = start(params, x_BD, slots)

        def wait():
            nonlocal slots
            values_BK, indices_BK, fires_B = result
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
    """Return values and indices [B, K], and the number of latents that fire on each row [B]."""
    x_BD = x_BD.astype(jnp.float32) - params["b_dec_D"]
    # Multiply in float32, as steering does, also on devices that default to a lower precision.
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
