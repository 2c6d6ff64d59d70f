"""The mesh and the PartitionSpec of every array.

The mesh always has the axes ``data`` (rows of a batch) and ``feature`` (latents), even on one device. Parameters
with an axis of latents are split along it, so each device has whole rows of W_enc_FD and W_dec_FD. All other
parameters are replicated. By default all devices are on the feature axis. Communication per step then does not grow
with the number of latents, and every matrix product is split.
"""

import math
import typing
from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from revelio_jax.errors import InputError
from revelio_jax.sae import releases

T = typing.TypeVar("T")

AXES = ("data", "feature")
BATCH = P("data", None)
HOST_BATCH = P(AXES, None)  # a batch from the host: each row is sent to one device only
STACKED_BATCH = P(None, AXES, None)  # the batches of several steps
STACKED_ROWS = P(None, AXES)  # one number for each of their rows
ROWS = P("data")
LATENTS = P("feature")
REPLICATED = P()


def params(architecture: str) -> dict[str, P]:
    """Return the PartitionSpecs of the parameters of an autoencoder."""
    specs = {
        "W_enc_FD": P("feature", None),
        "b_enc_F": LATENTS,
        "W_dec_FD": P("feature", None),
        "b_dec_D": REPLICATED,
    }
    return specs | ({"log_threshold_F": LATENTS} if architecture == "jumprelu" else {})


def make_mesh(
    data: int | None,
    feature: int | None,
    batch_size: int,
    latents: int,
    devices: Sequence[typing.Any] | None = None,
) -> Mesh:
    """Return the mesh of a run over ``devices``, by default all devices of JAX.

    None as the size of an axis means all remaining devices. Raise InputError if the axes do not divide the
    devices, the rows of a batch or the latents. By default also raise InputError if this release of JAX must not be
    used on the devices.
    """
    if devices is None:
        devices = jax.devices()
        releases.check(devices)
    data, feature = mesh_shape(data, feature, batch_size, latents, len(devices))
    return jax.make_mesh((data, feature), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices[: data * feature])


def mesh_shape(data: int | None, feature: int | None, batch_size: int, latents: int, count: int) -> tuple[int, int]:
    """Return the sizes of the axes of a mesh over ``count`` devices.

    None means all remaining devices. Raise InputError if the axes do not divide the devices, the rows of a batch or
    the latents; JAX would silently replicate such dimensions.
    """
    if data is None and feature is None:
        raise InputError("config.mesh.data and config.mesh.feature are both None; set one of them")
    for name, size, other in (("data", data, feature), ("feature", feature, data)):
        if size is None:
            continue
        if size < 1:
            raise InputError(f"config.mesh.{name} is {size}; it must be at least 1, or None")
        if other is None and count % size:
            raise InputError(f"config.mesh.{name} is {size}; it must divide the {count} devices")
    data = count // (feature or 1) if data is None else data
    feature = count // data if feature is None else feature
    if data * feature > count:
        raise InputError(f"config.mesh.data x config.mesh.feature is {data} x {feature}; there are {count} devices")
    if latents % feature:
        raise InputError(
            f"config.mesh.feature is {feature}; it must divide the {latents} latents "
            "(config.sae.latents, or width of the site x config.sae.expansion)"
        )
    if batch_size % (data * feature):
        raise InputError(
            f"config.train.batch_size is {batch_size}; it must be a multiple of the {data * feature} devices "
            "(config.mesh.data x config.mesh.feature), so that each device gets the same number of rows"
        )
    return data, feature


def optimizer_specs(optimizer: optax.GradientTransformation, specs: dict[str, P]) -> typing.Any:
    """Return the PartitionSpecs of an optimizer's state; moments are split like their parameters."""
    state = jax.eval_shape(optimizer.init, dict.fromkeys(specs, jax.ShapeDtypeStruct((), "float32")))
    return optax.tree_utils.tree_map_params(
        optimizer, lambda _, spec: spec, state, specs, transform_non_params=lambda _: REPLICATED
    )


def named_shardings(mesh: Mesh, specs: typing.Any) -> typing.Any:
    """Return the tree with a NamedSharding for every PartitionSpec."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))


def own_lanes(process_DF: np.ndarray, lanes: int, process: int) -> tuple[int, ...]:
    """Return the lanes of a batch whose rows the devices of ``process`` hold; this process reads them.

    ``process_DF`` is the process of every device of the mesh, int [data, feature]. Raise InputError if the rows
    of a process are not whole lanes, because two processes would then read the same chunks.
    """
    is_own_A = (process_DF == process).reshape(-1)
    devices, borders = len(is_own_A), np.flatnonzero(np.diff(is_own_A, prepend=False, append=False))
    if not is_own_A.any():
        raise InputError(
            "config.mesh.data x config.mesh.feature is {} x {}, ".format(*process_DF.shape)
            + f"which leaves process {process} without a device"
        )
    parts = devices // math.gcd(devices, *borders.tolist())
    if lanes % parts:
        raise InputError(
            f"config.data.lanes is {lanes}; it must be a multiple of {parts}, the parts of a batch that processes read"
        )
    return tuple(lane for lane in range(lanes) if is_own_A[lane * devices // lanes])


def processes(mesh: Mesh) -> np.ndarray:
    """Return the process of every device, int [data, feature]."""
    return np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)


def put_batch(mesh: Mesh, x_BD: np.ndarray) -> jax.Array:
    """Put a batch on its devices; ``x_BD`` has the rows of the lanes of this process."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, HOST_BATCH), x_BD)


def all_rows(arrays: T) -> T:
    """Gather the rows of a tree of arrays over ``data``, inside ``jax.shard_map``; every device gets all rows."""
    if jax.lax.axis_size("data") == 1:  # all_gather would copy the rows; step.py declares them replicated
        return arrays
    return jax.tree.map(lambda array: jax.lax.all_gather(array, "data", tiled=True, to="invarying"), arrays)


def sum_over_rows(sums: T, rows_BD: jax.Array) -> T:
    """Sum over ``data``, inside ``jax.shard_map``, unless ``rows_BD`` are already the rows of all devices."""
    return jax.lax.psum(sums, "data") if "data" in jax.typeof(rows_BD).manual_axis_type.varying else sums


def varying_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """Let x vary over all mesh axes over which ``like`` varies, as branches of a conditional must agree on this."""
    axes = jax.typeof(like).manual_axis_type.varying - jax.typeof(x).manual_axis_type.varying
    return jax.lax.pcast(x, tuple(axes), to="varying")


def total(x: jax.Array, reduce: Callable[..., jax.Array] = jax.lax.psum) -> jax.Array:
    """Reduce ``x`` over the whole mesh, inside ``jax.shard_map``; an axis of size 1 may be replicated."""
    for axis in AXES:  # one at a time, because a reduction needs the same type on all its axes
        x = reduce(x, axis)
    return x
