"""The meshes of a slice on which a run can train, and the smallest slice that holds it."""

import math
import re
from collections.abc import Sequence

import jax

from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.planning.chips import CHIPS, parse_topology, topology_devices
from revelio_jax.planning.compiled_step import Plan, StepWork, plan_mesh
from revelio_jax.sae import sharding


def select_meshes(work: StepWork, topology: str, flags: Sequence[str]) -> list[tuple[int, int]]:
    """Return the meshes (data, feature) to plan: the values of ``--mesh``, or else the config's mesh, or else all.

    Raise InputError if a mesh does not use all chips of the slice, or if no mesh divides the batch and the latents.
    """
    chips = math.prod(parse_topology(topology)[1])
    meshes = [parse_mesh(flag, chips, topology) for flag in flags]
    meshes = meshes or configured_mesh(work.config, chips, topology) or possible_meshes(work, chips)
    if not meshes:
        raise InputError(
            f"--topology {topology}: no mesh of {chips} chips divides both config.train.batch_size "
            f"({work.config.train.batch_size}) and the {work.latents} latents"
        )
    return meshes


def parse_mesh(mesh: str, chips: int, topology: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", mesh)
    if not match or int(match[1]) * int(match[2]) != chips:
        raise InputError(f"--mesh is {mesh!r}; it must be DATAxFEATURE with {chips} chips ({topology})")
    return int(match[1]), int(match[2])


def configured_mesh(config: Config, chips: int, topology: str) -> list[tuple[int, int]]:
    """Return the mesh that the config sets, or no mesh for the default."""
    data, feature = fields = config.mesh.data, config.mesh.feature
    if fields == (1, None):  # the default
        return []
    if data is None and feature is not None and chips % feature == 0:
        data = chips // feature
    elif feature is None and data is not None and chips % data == 0:
        feature = chips // data
    if data is None or feature is None or data * feature != chips:
        raise InputError(
            f"config.mesh.data x config.mesh.feature is {fields[0]} x {fields[1]}; it must be the {chips} chips "
            f"of {topology}"
        )
    return [(data, feature)]


def possible_meshes(work: StepWork, chips: int) -> list[tuple[int, int]]:
    """Return every mesh of all chips that divides the batch and the latents, ordered by the data axis."""
    pairs = [(data, chips // data) for data in range(1, chips + 1) if chips % data == 0]
    return [(a, b) for a, b in pairs if work.config.train.batch_size % a == 0 and work.latents % b == 0]


def smallest_slice(work: StepWork, kind: str, known: dict[str, list[Plan]]) -> tuple[str, Plan] | None:
    """Return the slice with the fewest chips on which a mesh fits, and its plan. Plans in ``known`` are reused."""
    chip = CHIPS[kind]
    for shape in chip.slices:
        topology = f"{kind}:{shape}"
        plans = {plan.mesh: plan for plan in known.get(topology, [])}
        for data, feature in possible_meshes(work, math.prod(map(int, shape.split("x")))):
            # Skip compiling if two matrices and their moments in float32 alone are too large.
            if 2 * 3 * 4 * work.latents * work.d / feature > chip.hbm:
                continue
            plan = plans.get((data, feature)) or plan_mesh(work, place_mesh(work, topology, (data, feature)), chip)
            if plan.fits:
                return topology, plan
    return None


def place_mesh(work: StepWork, topology: str, shape: tuple[int, int]) -> jax.sharding.Mesh:
    """Return a mesh of the slice's chips. Raise InputError if libtpu is missing or the mesh does not divide."""
    devices = topology_devices(topology)
    return sharding.make_mesh(*shape, work.config.train.batch_size, work.latents, devices)
