"""Where every array lives: the mesh and all PartitionSpecs.

The mesh has the axes ``data`` (rows of a batch) and ``feature`` (latents), also on one device.
Parameters with a latents' axis are split along it; each device then holds whole rows of W_enc_FD and
W_dec_FD. Everything else is the same on every device. All devices on the feature axis are the default:
what then moves in a step does not grow with the latents, and every product is split.
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

AXES = ("data", "feature")
BATCH = P("data", None)
ARRIVING = P(AXES, None)  # a batch before it is gathered over ``feature``: each row comes in once
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
    data: int | None,
    feature: int | None,
    batch_size: int,
    latents: int,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Return the mesh of a run, of all ``devices`` that JAX has or of those given.

    Raises InputError if the axes do not fit the devices, the rows of a batch or the latents: JAX would
    replicate dimensions that do not divide without a word. None stands for all remaining devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if data is None and feature is None:
        raise InputError("config.mesh.data and config.mesh.feature are both None; set one of them")
    for name, size, other in (("data", data, feature), ("feature", feature, data)):
        if size is not None and size < 1:
            raise InputError(f"config.mesh.{name} is {size}; it must be at least 1, or None")
        if other is None and count % size:
            raise InputError(f"config.mesh.{name} is {size}; it must divide the {count} devices")
    data = count // feature if data is None else data
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
            "(config.mesh.data x config.mesh.feature), each of which is given its part of the rows"
        )
    return jax.make_mesh((data, feature), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices[: data * feature])


def like_params(optimizer: optax.GradientTransformation, specs: dict[str, P]) -> typing.Any:
    """PartitionSpecs of an optimizer's state: moments lie as their parameters, with ``specs``, do."""
    state = jax.eval_shape(optimizer.init, dict.fromkeys(specs, jax.ShapeDtypeStruct((), "float32")))
    return optax.tree_utils.tree_map_params(
        optimizer, lambda _, spec: spec, state, specs, transform_non_params=lambda _: REPLICATED
    )


def named(mesh: Mesh, specs: typing.Any) -> typing.Any:
    """A NamedSharding for every PartitionSpec of a tree."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))


def own_lanes(process_DF: np.ndarray, lanes: int, process: int) -> tuple[int, ...]:
    """The lanes of a batch whose rows arrive on devices of ``process``: those that it has to read.

    ``process_DF`` is the process of every device of the mesh, int [data, feature]. Raises InputError
    where the rows are no whole lanes, so that two processes would read the same chunks.
    """
    mine_A = (process_DF == process).reshape(-1)
    devices, borders = len(mine_A), np.flatnonzero(np.diff(mine_A, prepend=False, append=False))
    if not mine_A.any():
        raise InputError(
            "config.mesh.data x config.mesh.feature is {} x {}, ".format(*process_DF.shape)
            + f"which leaves process {process} without a device"
        )
    parts = devices // math.gcd(devices, *borders.tolist())
    if lanes % parts:
        raise InputError(
            f"config.data.lanes is {lanes}; it must be a multiple of {parts}, the parts of a batch that processes read"
        )
    return tuple(lane for lane in range(lanes) if mine_A[lane * devices // lanes])


def processes(mesh: Mesh) -> np.ndarray:
    """The process of every device, int [data, feature]."""
    return np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)


def put_batch(mesh: Mesh, x_BD: np.ndarray) -> jax.Array:
    """A batch on its devices, from the rows that this process has: those of its lanes."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, ARRIVING), x_BD)


def total(x: jax.Array, reduce: Callable = jax.lax.psum) -> jax.Array:
    """``x`` reduced over the whole mesh, inside ``jax.shard_map``; it may be the same along an axis of 1."""
    for axis in AXES:  # one by one, since a reduction wants all its axes to be typed alike
        x = reduce(x, axis)
    return x
