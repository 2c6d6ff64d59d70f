"""Compile the train step for a TPU that this machine does not have, and print memory, time and collectives.

    revelio plan --config configs/flux_t5.py --topology v5e:4x4
    revelio plan --config configs/flux_t5.py --topology v5e:4x4 --mesh 4x4 --smallest no

Needs `pip install '.[plan]'`, which brings libtpu with XLA's compiler for TPU. No TPU, store or model is needed; if
the store exists, its width and number of rows are used. Compiling for one mesh takes about a minute.

One line per mesh (data x feature) of the topology's chips:

    GiB/chip    arguments, temporaries and program, as XLA places them; XLA refuses a mesh that does not fit
    XLA         the step without dead latents: XLA's own cycle estimates, and at the chip's published rates the
                bytes of collectives and of gathers, scatters and sorts, for which XLA estimates no cycles
    dead        the same with so many dead latents that AuxK takes its most expensive branch
    roof        a lower bound for any program: the encoder's and the sparse products at peak, reading and writing
                the state once, or the collectives; the largest of the three, by name
    rows/s, h   from the column XLA, for config.train.steps

These numbers are a compiler's estimates, not measurements. Gathers and scatters of single rows in particular are
often slower than their bytes suggest.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from revelio_jax.cli import parse
from revelio_jax.config import Config
from revelio_jax.errors import InputError, reported
from revelio_jax.planning import hlo
from revelio_jax.planning.widths import known_width
from revelio_jax.sae import sharding
from revelio_jax.store import open_store
from revelio_jax.training.run import dictionary_size
from revelio_jax.training.step import abstract_state, make_train_step

GIB = 2**30
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
HEAD = f"{'mesh':>8} {'GiB/chip':>9} {'fits':>5} {'XLA':>9} {'dead':>9} {'roof':>19} {'rows/s':>11} {'h':>7}"
CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published rates of a chip, and the slices that are offered, smallest first."""

    hbm: float  # bytes that XLA may use, slightly less than the chip has
    bytes_s: float  # of HBM
    flops_s: float  # bfloat16, the default of TPUs also for float32 matrices
    sent_s: float  # bytes over all links to other chips, one way
    clock: float  # Hz: flops_s divided by the operations per cycle of the matrix units
    slices: tuple[str, ...]


# Sources: cloud.google.com/tpu/docs/{v5e,v5p,v6e}; hbm from libtpu 0.0.42's out-of-memory message.
# clock: 4 x 128 x 128 multipliers (v5e), 8 x 128 x 128 (v5p), 4 x 256 x 256 (v6e), 2 operations each.
CHIPS = {
    "v5e": Chip(15.75 * GIB, 819e9, 197e12, 200e9, 1.50e9, FLAT),
    "v5p": Chip(95.74 * GIB, 2765e9, 459e12, 600e9, 1.75e9, CUBE),
    "v6e": Chip(31.25 * GIB, 1640e9, 918e12, 400e9, 1.75e9, FLAT),
}


@dataclasses.dataclass(frozen=True)
class StepWork:
    """The run to plan: an SAE with ``latents`` latents on a site of width ``d``."""

    config: Config
    site: str
    d: int
    latents: int
    rows: int | None  # rows of the store, None without a store


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes and seconds per chip of the train step on one mesh; only memory if the mesh does not fit."""

    mesh: tuple[int, int]
    memory: float
    fits: bool
    parts: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: float = math.inf
    seconds_dead: float = math.inf
    roofs: dict[str, float] = dataclasses.field(default_factory=dict)
    collectives: Counter = dataclasses.field(default_factory=Counter)


def plan(config: Config, topology: str, meshes: tuple[str, ...], width: int, smallest: bool) -> None:
    """Print the report. Raise InputError before anything is compiled."""
    kind, shape = parse_topology(topology)
    work = describe_work(config, width)
    chips = math.prod(shape)
    wanted = [parse_mesh(mesh, chips, topology) for mesh in meshes] or configured(config, chips, topology)
    wanted = wanted or possible(work, chips)
    if not wanted:
        raise InputError(
            f"--topology {topology}: no mesh of {chips} chips divides both config.train.batch_size "
            f"({config.train.batch_size}) and the {work.latents} latents"
        )
    devices = topology_devices(topology)
    placed = [sharding.make_mesh(*mesh, config.train.batch_size, work.latents, devices) for mesh in wanted]

    print(describe(work, topology))
    print(HEAD, flush=True)
    plans = []
    for mesh in placed:
        plans.append(plan_mesh(work, mesh, CHIPS[kind]))
        print(line(plans[-1], config), flush=True)
    fitting = [plan for plan in plans if plan.fits]
    if fitting:
        print(details(min(fitting, key=lambda plan: plan.seconds), CHIPS[kind]))
    if smallest:
        print(smallest_that_fits(work, kind, {topology: plans}))


def describe_work(config: Config, width: int) -> StepWork:
    """Return the run to plan. ``width`` 0: take it from the store, the model's folder, or the known hub models."""
    site = config.data.site or next(iter(config.extract.sites), "")
    if width < 0:
        raise InputError(f"--width is {width}; it must be at least 1, or 0 to find it")
    d, rows = width or None, None
    store = None
    with contextlib.suppress(InputError):  # not extracted yet
        store = open_store(config.extract.store) if config.extract.store and not d else None
    if store:
        stored = store.site(config.data.site)
        site, d, rows = stored.name, stored.d, stored.rows
    d = d or known_width(config.model.id, config.model.family, site)
    if not d:
        raise InputError(
            f"the width of site {site!r} of {config.model.id!r} is not known and there is no store at "
            f"{config.extract.store!r}; give it as --width N"
        )
    return StepWork(config, site, d, dictionary_size(config, d), rows)


def parse_topology(topology: str) -> tuple[str, tuple[int, ...]]:
    """Return the kind of chip and the shape. Raise InputError with the allowed values."""
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS or shape not in CHIPS[kind].slices:
        known = f"{kind}:" + f", {kind}:".join(CHIPS[kind].slices) if kind in CHIPS else ""
        kinds = "; ".join(f"{kind}:{' '.join(chip.slices)}" for kind, chip in CHIPS.items())
        raise InputError(f"--topology is {topology!r}; allowed: {known or kinds}")
    return kind, tuple(map(int, shape.split("x")))


def parse_mesh(mesh: str, chips: int, topology: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", mesh)
    if not match or int(match[1]) * int(match[2]) != chips:
        raise InputError(f"--mesh is {mesh!r}; it must be DATAxFEATURE with {chips} chips ({topology})")
    return int(match[1]), int(match[2])


def configured(config: Config, chips: int, topology: str) -> list[tuple[int, int]]:
    """Return the mesh that the config sets, or no mesh for the default."""
    data, feature = given = config.mesh.data, config.mesh.feature
    if given == (1, None):  # the default
        return []
    if data is None and chips % feature == 0:
        data = chips // feature
    elif feature is None and chips % data == 0:
        feature = chips // data
    if None in (data, feature) or data * feature != chips:
        raise InputError(
            f"config.mesh.data x config.mesh.feature is {given[0]} x {given[1]}; it must be the {chips} chips "
            f"of {topology}"
        )
    return [(data, feature)]


def possible(work: StepWork, chips: int) -> list[tuple[int, int]]:
    """Return every mesh of all chips that divides the batch and the latents, ordered by the data axis."""
    pairs = [(data, chips // data) for data in range(1, chips + 1) if chips % data == 0]
    return [(a, b) for a, b in pairs if work.config.train.batch_size % a == 0 and work.latents % b == 0]


@functools.cache
def topology_devices(topology: str) -> tuple[jax.Device, ...]:
    """Return the chips of a slice, which need not exist. Raise InputError if libtpu cannot be used."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("libtpu, XLA's compiler for TPU, is not installed: pip install '.[plan]'")
    from jax.experimental import topologies

    # libtpu reads these when it is loaded. It must not ask a metadata server, and must not claim the chips of this
    # machine, which another run may hold.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # avoids a warning
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    single = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    try:
        described = topologies.get_topology_desc(topology_name=topology, platform="tpu", **single)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--topology {topology}: libtpu cannot describe it: {reason}") from error
    return tuple(described.devices)


def compile_step(work: StepWork, mesh: jax.sharding.Mesh) -> jax.stages.Compiled:
    """Compile the train step for the devices of a mesh."""
    sae, options = work.config.sae, work.config.train
    state = abstract_state(work.latents, work.d, sae, options, mesh)
    place = jax.sharding.NamedSharding(mesh, sharding.BATCH)
    x_BD = jax.ShapeDtypeStruct((options.batch_size, work.d), jnp.float32, sharding=place)
    return make_train_step(sae, options, mesh).lower(state, x_BD).compile()


def plan_mesh(work: StepWork, mesh: jax.sharding.Mesh, chip: Chip) -> Plan:
    """Compile for one mesh and read memory and cost from XLA."""
    data, feature = mesh.devices.shape
    try:
        compiled = compile_step(work, mesh)
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"([\d.]+)([MGT])\b", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not used:
            raise
        return Plan((data, feature), float(used[1]) * 2.0 ** {"M": 20, "G": 30, "T": 40}[used[2]], False)
    memory, text = compiled.memory_analysis(), compiled.as_text()
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "results beside them": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    least, most = (hlo.cost(text, mesh.size, branch) for branch in (min, max))

    def seconds(cost: hlo.Cost) -> float:
        return cost.cycles / chip.clock + cost.moved / chip.bytes_s + cost.sent / chip.sent_s

    rows, latents = work.config.train.batch_size / data, work.latents / feature
    sparse = 4 * work.config.sae.k / feature  # decode, and gradients of the code and of both matrices
    roofs = {
        "compute": 2 * rows * work.d * (latents + sparse) / chip.flops_s,
        "HBM": (memory.argument_size_in_bytes + memory.output_size_in_bytes) / chip.bytes_s,
        "links": least.sent / chip.sent_s,
    }
    total = sum(parts.values())
    return Plan(
        (data, feature),
        total,
        total <= chip.hbm,
        parts,
        seconds(least),
        seconds(most),
        roofs,
        least.collectives,
    )


def smallest_that_fits(work: StepWork, kind: str, known: dict[str, list[Plan]]) -> str:
    """Return the slice with the fewest chips on which a mesh fits, as a line. Plans in ``known`` are reused."""
    chip = CHIPS[kind]
    for shape in chip.slices:
        topology = f"{kind}:{shape}"
        plans = {plan.mesh: plan for plan in known.get(topology, [])}
        for data, feature in possible(work, math.prod(map(int, shape.split("x")))):
            # Skip compiling if two matrices and their moments in float32 alone are too large.
            if 2 * 3 * 4 * work.latents * work.d / feature > chip.hbm:
                continue
            found = plans.get((data, feature))
            if not found:
                devices = topology_devices(topology)
                batch_size = work.config.train.batch_size
                mesh = sharding.make_mesh(data, feature, batch_size, work.latents, devices)
                found = plan_mesh(work, mesh, chip)
            if found.fits:
                size = f"{found.memory / GIB:.2f} GiB/chip, {hours(found.seconds, work.config):.1f} h"
                return f"smallest that fits: {topology}, mesh {data}x{feature}, {size}"
    return f"smallest that fits: none of {kind}, up to {chip.slices[-1]}"


def hours(seconds: float, config: Config) -> float:
    return seconds * config.train.steps / 3600


def describe(work: StepWork, topology: str) -> str:
    options, chip = work.config.train, CHIPS[topology.partition(":")[0]]
    total = options.steps * options.batch_size
    epochs = f", {total / work.rows:.1f} epochs of the store" if work.rows else ""
    return (
        f"{work.site}: width {work.d}, {work.latents} latents, k {work.config.sae.k}; "
        f"{options.steps:,} steps of {options.batch_size:,} rows are {total:,} rows{epochs}\n"
        f"{topology}: a chip has {chip.hbm / GIB:.2f} GiB HBM at {chip.bytes_s / 1e9:,.0f} GB/s, "
        f"{chip.flops_s / 1e12:,.0f} TFLOP/s in bfloat16, links of {chip.sent_s / 1e9:,.0f} GB/s"
    )


def line(plan: Plan, config: Config) -> str:
    """Return the line of a mesh."""
    start = f"{'{}x{}'.format(*plan.mesh):>8} {plan.memory / GIB:>9.2f} {'yes' if plan.fits else 'no':>5}"
    if not plan.roofs:
        return start
    roof = max(plan.roofs, key=plan.roofs.get)
    return (
        f"{start} {1e3 * plan.seconds:>6.1f} ms {1e3 * plan.seconds_dead:>6.1f} ms "
        f"{1e3 * plan.roofs[roof]:>7.1f} ms {roof:>8} {config.train.batch_size / plan.seconds:>11,.0f} "
        f"{hours(plan.seconds, config):>7.1f}"
    )


def details(plan: Plan, chip: Chip) -> str:
    """Return memory, roofs and collectives of the best mesh."""
    lines = [
        "best: {}x{}".format(*plan.mesh),
        "  memory: " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in plan.parts.items())
        + f" GiB of {chip.hbm / GIB:.2f}",
        "  roofs: " + ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in plan.roofs.items()),
    ]  # fmt: skip
    kinds: dict[tuple[str, int], list[int]] = {}
    for collective, times in plan.collectives.items():
        kinds.setdefault((collective.kind, collective.chips), []).extend([collective.bytes] * times)
    for (kind, chips), sizes in sorted(kinds.items()):
        lines.append(f"  {len(sizes)} {kind} over {chips} chips, {sum(sizes) / 1e6:,.1f} MB a chip")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    jax.config.update("jax_platforms", "cpu")  # nothing runs on an accelerator of this machine
    config, extra = parse(
        ["revelio_jax.plan", *argv],
        __doc__,
        topology=("v5e:4x4", "TPU slice to compile for, for example v5e:4x4 or v5p:2x2x2"),
        mesh=((), "data x feature, for example 4x4; repeat it for several; without it, every mesh that divides"),
        width=(0, "width of the activation; 0: from the store, the model's folder, or the known hub models"),
        smallest=(True, "also search for the smallest slice that fits"),
    )
    plan(config, extra["topology"], tuple(extra["mesh"] or ()), extra["width"], extra["smallest"])


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
