"""The meshes of a slice on which a run can train, their ranking, and the smallest slice that holds the run."""

import concurrent.futures
import dataclasses
import os
import re
from collections.abc import Sequence

from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.planning.chips import CHIPS, Chip, parse_topology
from revelio_jax.planning.compiled_step import Compiled, compile_mesh
from revelio_jax.planning.devices import can_compile, topology_devices
from revelio_jax.planning.model import Estimate, estimate
from revelio_jax.planning.work import StepWork
from revelio_jax.sae import sharding

MEMORY_MARGIN = 1.25  # if this times the model's memory fits, the smallest slice is not compiled
COMPILED = 3  # meshes to compile if no mesh is given, the fastest by the model


@dataclasses.dataclass(frozen=True)
class Plan:
    """The model's estimate of one mesh, and XLA's if the mesh was compiled."""

    estimate: Estimate
    chip: Chip
    compiled: Compiled | None = None

    @property
    def mesh(self) -> tuple[int, int]:
        return self.estimate.mesh

    @property
    def bytes(self) -> float:
        """Bytes per chip, by XLA if the mesh was compiled."""
        return self.compiled.bytes if self.compiled else self.estimate.bytes

    @property
    def fits(self) -> bool:
        return self.bytes <= self.chip.hbm and not (self.compiled and "refused" in self.compiled.memory)

    @property
    def seconds(self) -> float:
        """Seconds of a step without dead latents, by XLA if it gives any."""
        xla = self.compiled and self.compiled.seconds
        return xla or self.estimate.seconds

    def hours(self, steps: int) -> float:
        """Return the hours of a run of ``steps`` steps."""
        return self.seconds * steps / 3600


def select_meshes(work: StepWork, topology: str, flags: Sequence[str]) -> list[tuple[int, int]]:
    """Return the meshes (data, feature) to plan: the values of ``--mesh``, or else the config's mesh, or else all.

    Raise InputError if a mesh does not use all chips of the slice, or does not divide the batch and the latents.
    """
    _, chips = parse_topology(topology)
    batch_size = work.config.train.batch_size
    meshes = [parse_mesh(flag, chips, topology) for flag in flags] or configured_mesh(work.config, chips, topology)
    for data, feature in meshes:
        sharding.mesh_shape(data, feature, batch_size, work.latents, chips)
    meshes = meshes or possible_meshes(work, chips)
    if not meshes:
        raise InputError(
            f"--topology {topology}: no mesh of {chips} chips divides both config.train.batch_size "
            f"({batch_size}) and the {work.latents} latents"
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
    if work.config.train.batch_size % chips:  # each row comes from the host to one chip
        return []
    pairs = [(data, chips // data) for data in range(1, chips + 1) if chips % data == 0]
    return [(data, feature) for data, feature in pairs if work.latents % feature == 0]


def rank(work: StepWork, kind: str, meshes: Sequence[tuple[int, int]]) -> list[Plan]:
    """Return a plan for each mesh by the model, the fastest first, after them those that do not fit."""
    chip = CHIPS[kind]
    plans = [Plan(estimate(work, mesh, chip), chip) for mesh in meshes]
    return _sorted(plans)


def compile_plans(work: StepWork, topology: str, plans: Sequence[Plan]) -> list[Plan]:
    """Return the plans with XLA's memory, time and collectives; compilers run next to each other."""
    topology_devices(topology)  # loads the compiler once

    def one(plan: Plan) -> Plan:
        mesh = place_mesh(work, topology, plan.mesh)
        return dataclasses.replace(plan, compiled=compile_mesh(work, mesh, plan.chip))

    with concurrent.futures.ThreadPoolExecutor(min(len(plans), os.cpu_count() or 1)) as pool:
        return list(pool.map(one, plans))


def plan_slice(work: StepWork, topology: str, meshes: Sequence[tuple[int, int]], every: bool) -> list[Plan]:
    """Return plans of the meshes, the fastest first; compile all, or else the COMPILED fastest by the model.

    Compile none if the compiler for the chips is not installed.
    """
    kind, _ = parse_topology(topology)
    plans = rank(work, kind, meshes)
    if not can_compile(kind):
        return plans
    count = len(plans) if every else COMPILED
    return _sorted(compile_plans(work, topology, plans[:count])) + plans[count:]


def _sorted(plans: Sequence[Plan]) -> list[Plan]:
    return sorted(plans, key=lambda plan: (not plan.fits, plan.seconds))


def smallest_slice(work: StepWork, kind: str, known: dict[str, list[Plan]]) -> tuple[str, Plan] | None:
    """Return the slice with the fewest chips on which the run fits, and a plan for it. Reuse plans in ``known``."""
    for shape in CHIPS[kind].slices:
        topology = f"{kind}:{shape}"
        meshes = possible_meshes(work, parse_topology(topology)[1])
        plans = known.get(topology) or sorted(rank(work, kind, meshes), key=lambda plan: plan.bytes)
        # No program can do without the state and the gradients.
        memories = [plan.estimate.memory for plan in plans]
        if not any(memory["arguments"] + memory["gradients"] <= CHIPS[kind].hbm for memory in memories):
            continue
        # Compiling takes a minute. XLA needed up to 1.2 times the model's memory (docs/measurements/scaling.md).
        is_certain = plans[0].bytes * MEMORY_MARGIN < CHIPS[kind].hbm
        if topology not in known and can_compile(kind) and not is_certain:
            plans = compile_plans(work, topology, plans[:1])
        fitting = [plan for plan in plans if plan.fits]
        if fitting:
            return topology, fitting[0]
    return None


def place_mesh(work: StepWork, topology: str, shape: tuple[int, int]) -> sharding.Mesh:
    """Return a mesh of the slice's chips."""
    devices = topology_devices(topology)
    return sharding.make_mesh(*shape, work.config.train.batch_size, work.latents, devices)
