"""Where every array lives: the mesh and all PartitionSpecs.

The mesh has the axes ``data`` (rows of a batch) and ``feature`` (latents), also on one device.
Parameters with a latents' axis are split along it; each device then holds whole rows of W_enc_FD and
W_dec_FD. Everything else is the same on every device. All devices on the feature axis are the default:
what then moves in a step does not grow with the latents, and every product is split.
"""

import typing
from collections.abc import Sequence

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from revelio_jax.errors import InputError

AXES = ("data", "feature")
BATCH = P("data", None)
ROWS = P("data")
LATENTS = P("feature")
REPLICATED = P()


def params(architecture: str) -> dict[str, P]:
    """PartitionSpecs of an autoencoder's parameters."""
    specs = {
        "W_enc_FD": P("feature", None),
        "b_enc_F": LATENTS,
        "W_dec_FD": P("feature", None),
        "b_dec_D": REPLICATED,
    }
    return specs | ({"log_threshold_F": LATENTS} if architecture == "jumprelu" else {})


def make_mesh(
    data: int, feature: int, batch_size: int, latents: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh of a run, of all ``devices`` that JAX has or of those given; -1 takes all that are left.

    Raises InputError where it does not fit the devices, the rows of a batch or the latents: sizes
    that do not divide would be replicated in silence.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    sizes = {"config.train.mesh_data": data, "config.train.mesh_feature": feature}
    for name, size in sizes.items():
        if size == 0:
            raise InputError(f"{name} is 0; it must be -1 or at least 1")
    if data == feature == -1:
        raise InputError("config.train.mesh_data and mesh_feature are both -1; one of them must be given")
    for name, size in sizes.items():
        if -1 in sizes.values() and size != -1 and count % size:
            raise InputError(f"{name} is {size}; it must divide {count} devices")
    if data == -1:
        data = count // feature
    elif feature == -1:
        feature = count // data
    if data * feature > count:
        raise InputError(
            f"config.train.mesh_data x mesh_feature is {data} x {feature}; there are {count} devices"
        )
    if batch_size % data:
        raise InputError(
            f"config.train.batch_size is {batch_size}; it must be a multiple of the {data} devices "
            "along the data axis (config.train.mesh_data)"
        )
    if latents % feature:
        raise InputError(
            f"config.train.mesh_feature is {feature}; it must divide the {latents} latents "
            "(width of the site x config.sae.expansion)"
        )
    return jax.make_mesh(
        (data, feature), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices[: data * feature]
    )


def like_params(optimiser: optax.GradientTransformation, specs: dict[str, P]) -> typing.Any:
    """PartitionSpecs of an optimiser's state: moments lie as their parameters, with ``specs``, do."""
    state = jax.eval_shape(optimiser.init, dict.fromkeys(specs, jax.ShapeDtypeStruct((), "float32")))
    return optax.tree_utils.tree_map_params(
        optimiser, lambda _, spec: spec, state, specs, transform_non_params=lambda _: REPLICATED
    )


def named(mesh: Mesh, specs: typing.Any) -> typing.Any:
    """A NamedSharding for every PartitionSpec of a tree."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))


def put_batch(mesh: Mesh, x_BD: np.ndarray) -> jax.Array:
    """Rows of a batch on their devices."""
    return jax.device_put(x_BD, NamedSharding(mesh, BATCH))


def shared(x: jax.Array, *axes: str) -> jax.Array:
    """``x``, the same on all devices along ``axes``, typed as if it varied (inside ``jax.shard_map``).

    The transpose of this cast is the sum over those axes, so gradients that each device computes from
    its own rows or latents are summed where the value was shared.
    """
    return jax.lax.pcast(x, axes, to="varying")
