"""Where every array lives: the mesh and all PartitionSpecs.

The mesh has the axes ``data`` (rows of a batch) and ``feature`` (latents), also on one device.
Parameters with a latents' axis are split along it; each device then holds whole rows of W_enc_FD and
W_dec_FD. Everything else is the same on every device.
"""

import math
import typing

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
PARAMS = {
    "W_enc_FD": P("feature", None),
    "b_enc_F": LATENTS,
    "W_dec_FD": P("feature", None),
    "b_dec_D": REPLICATED,
}


def make_mesh(data: int, feature: int, batch_size: int, latents: int) -> Mesh:
    """The mesh of a run; ``data`` -1 takes all devices that are left.

    Raises InputError where it does not fit the devices, the rows of a batch or the latents: sizes
    that do not divide would be replicated in silence.
    """
    devices = jax.device_count()
    if data == 0:
        raise InputError("config.train.mesh_data is 0; it must be -1 or at least 1")
    if data == -1:
        if devices % feature:
            raise InputError(f"config.train.mesh_feature is {feature}; it must divide {devices} devices")
        data = devices // feature
    if data * feature > devices:
        raise InputError(
            f"config.train.mesh_data x mesh_feature is {data} x {feature}; there are {devices} devices"
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
        (data, feature), AXES, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: data * feature]
    )


def like_params(optimiser: optax.GradientTransformation) -> typing.Any:
    """PartitionSpecs of an optimiser's state: moments lie as their parameters do."""
    state = jax.eval_shape(optimiser.init, dict.fromkeys(PARAMS, jax.ShapeDtypeStruct((), "float32")))
    return optax.tree_utils.tree_map_params(
        optimiser, lambda _, spec: spec, state, PARAMS, transform_non_params=lambda _: REPLICATED
    )


def named(mesh: Mesh, specs: typing.Any) -> typing.Any:
    """A NamedSharding for every PartitionSpec of a tree."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))


def own_lanes(process_DF: np.ndarray, lanes: int, process: int) -> tuple[int, ...]:
    """The lanes of a batch whose rows lie on devices of ``process``: those that it has to read.

    ``process_DF`` is the process of every device of the mesh, int [data, feature]. Raises InputError
    where the rows are no whole lanes, so that two processes would read the same chunks.
    """
    mine_D = (process_DF == process).any(1)
    data, borders = len(mine_D), np.flatnonzero(np.diff(mine_D, prepend=False, append=False))
    if not mine_D.any():
        raise InputError(
            f"config.train.mesh_data x mesh_feature is {data} x {process_DF.shape[1]}, "
            f"which leaves process {process} without a device"
        )
    parts = data // math.gcd(data, *borders.tolist())
    if lanes % parts:
        raise InputError(
            f"config.train.lanes is {lanes}; it must be a multiple of {parts}, the parts of a batch that "
            "processes read"
        )
    return tuple(lane for lane in range(lanes) if mine_D[lane * data // lanes])


def processes(mesh: Mesh) -> np.ndarray:
    """The process of every device, int [data, feature]."""
    return np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)


def put_batch(mesh: Mesh, x_BD: np.ndarray) -> jax.Array:
    """A batch on its devices, from the rows that this process has: those of its lanes."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, BATCH), x_BD)


def shared(x: jax.Array, *axes: str) -> jax.Array:
    """``x``, the same on all devices along ``axes``, typed as if it varied (inside ``jax.shard_map``).

    The transpose of this cast is the sum over those axes, so gradients that each device computes from
    its own rows or latents are summed where the value was shared.
    """
    return jax.lax.pcast(x, axes, to="varying")
