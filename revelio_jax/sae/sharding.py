"""The mesh and the PartitionSpec of every array.

The mesh always has the axes ``data`` (rows of a batch) and ``feature`` (latents), even on one device. Parameters
with an axis of latents are split along it, so each device has whole rows of W_enc_FD and W_dec_FD. All other
parameters are replicated. By default all devices are on the feature axis. Communication per step then does not grow
with the number of latents, and every matrix product is split.
"""

import collections
import math
import typing
from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
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
    shape = mesh_shape(data, feature, batch_size, latents, len(devices))
    return Mesh(place_devices(shape, devices[: math.prod(shape)]), AXES, axis_types=(AxisType.Auto,) * 2)


def place_devices(shape: tuple[int, int], devices: Sequence[typing.Any]) -> np.ndarray:
    """Return the devices as an array of ``shape``, [data, feature], with close devices on the feature axis.

    A slice is a set of devices with a fast network: a TPU slice, or the GPUs of one machine. The feature axis stays
    within a slice, or takes whole slices. Raise InputError if it does neither.

    jax.make_mesh refuses several slices, and axes that split a physical axis of a TPU, for example 2x8 on 4x4 chips.
    """
    data, feature = shape
    slices = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    size = min(slices.values())
    if len(slices) == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if len(devices) == size * len(slices) and size % feature == 0:
        inner, outer = (size // feature, feature), (len(slices), 1)
    elif len(devices) == size * len(slices) and feature % size == 0:
        inner, outer = (1, size), (data, feature // size)
    else:
        sizes = ", ".join(str(slices[index]) for index in sorted(slices))
        raise InputError(
            f"config.mesh.data x config.mesh.feature is {data} x {feature}; the devices are in {len(slices)} slices of "
            f"{sizes} devices; slices must have one size, which config.mesh.feature divides or is a multiple of"
        )
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)


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
