"""Plan a run on TPUs or GPUs that this machine does not have: memory, time, cost and the best mesh.

    revelio plan --config flux_t5 --topology h100:8 --price 2.5
    revelio plan --config flux_t5 --topology v5e:4x4
    revelio plan --config flux_t5 --topology v5e:4x4 --mesh 4x4 --smallest no

No accelerator, store or model is needed; if the store exists, its width and number of rows are used. A model of the
step ranks all meshes (data x feature) of the chips by counts of operations, bytes and published rates. XLA then
compiles the three best, or every mesh that --mesh names. Its compiler comes with `pip install '.[plan]'` for TPUs and
`pip install '.[plan-cuda13]'` for GPUs. Without it, all numbers are the model's.

One line per mesh, the fastest first. A `~` marks the model's number where XLA's would be better:

    GiB/chip    arguments, temporaries and program, as XLA places them; XLA refuses a mesh that does not fit
    model       a step without dead latents by the model, which assumes that products reach 80 % and reads 90 % of the
                published rates
    XLA         the same for TPUs: XLA's cycle estimates, plus the bytes of collectives, gathers, scatters, sorts and
                top-k at the chip's published rates, since XLA estimates no cycles for these. XLA estimates no cycles
                for GPUs at all
    dead        a step with many dead latents, on which AuxK takes its most expensive branch
    roof        a lower bound for any program, with its name: the largest of the encoder's and the sparse products at
                peak rate, reading and writing the state once, the collectives, and the rows from the host
    rows/s, h   from the column XLA, or else model, for config.train.steps
    cost        --price times chips times hours

Of AuxK's branches, only that without dead latents and the most expensive one are compiled; the others take minutes.
All numbers are estimates of a compiler or a model, not measurements. Gathers and scatters of single rows in particular
are often slower than their bytes suggest. Steps below half a millisecond are limited by their dispatch.
"""

import math
import sys
from collections import Counter
from collections.abc import Sequence

import jax

from revelio_jax.cli import parse
from revelio_jax.config import Config
from revelio_jax.errors import InputError, report_errors
from revelio_jax.planning.advice import advise
from revelio_jax.planning.chips import CHIPS, GIB, parse_topology
from revelio_jax.planning.devices import can_compile
from revelio_jax.planning.hlo import Collective
from revelio_jax.planning.meshes import Plan, plan_slice, possible_meshes, select_meshes, smallest_slice
from revelio_jax.planning.work import StepWork, describe_work
from revelio_jax.sae import forms

COLUMNS = ["mesh:8", "GiB/chip:9", "fits:5", "model:10", "XLA:10", "dead:10", "roof:19", "rows/s:12", "h:8"]
HEAD = " ".join(name.rjust(int(width)) for name, width in (column.split(":") for column in COLUMNS))
EXTRAS = {"tpu": "plan", "cuda": "plan-cuda13"}
RESERVED = 0.75  # share of a GPU's memory that JAX takes by default


def plan(
    config: Config, topology: str, meshes: tuple[str, ...], width: int, smallest: bool, price: float = 0.0
) -> None:
    """Print the report. Raise InputError for a wrong topology, mesh, width or price, before anything is compiled."""
    kind, chips = parse_topology(topology)
    if not (math.isfinite(price) and price >= 0):
        raise InputError(f"--price is {price}; it must be at least 0, the price of one chip for an hour")
    work = describe_work(config, width)
    shapes = select_meshes(work, topology, meshes)

    print(describe(work, topology))
    if not can_compile(kind):
        print(
            f"XLA's compiler for {kind} is not installed (pip install '.[{EXTRAS[CHIPS[kind].platform]}]'): "
            "memory and time are by the model"
        )
    print(HEAD + (f" {'cost':>10}" if price else ""), flush=True)
    every = bool(meshes) or shapes != possible_meshes(work, chips)
    plans = plan_slice(work, topology, shapes, every)
    for row in plans:
        print(line(row, config, price), flush=True)
    best = plans[0]
    if best.fits:
        print(details(best, work))
        timed = {plan.mesh for plan in plans if plan.compiled and plan.compiled.seconds and plan is not best}
        others = [mesh for mesh in possible_meshes(work, chips) if mesh not in timed]  # XLA knows better than the model
        for advice in advise(work, others, best.mesh, best.chip):
            print(advice)
    if smallest:
        print(smallest_line(work, kind, {topology: plans}, price))


def describe(work: StepWork, topology: str) -> str:
    options, chip = work.config.train, CHIPS[topology.partition(":")[0]]
    total = options.steps * options.batch_size
    epochs = f", {total / work.rows:.1f} epochs of the store" if work.rows else ""
    nodes = f", {chip.network_s / 1e9:,.0f} GB/s between nodes of {chip.node}" if chip.node else ""
    dtype = forms.on_platform(work.config.sae, work.latents, chip.platform).matmul_dtype
    return (
        f"{work.site}: width {work.d}, {work.latents} latents, k {work.config.sae.k}; "
        f"{options.steps:,} steps of {options.batch_size:,} rows are {total:,} rows{epochs}\n"
        f"{topology}: a chip has {chip.hbm / GIB:.2f} GiB for XLA at {chip.bytes_s / 1e9:,.0f} GB/s, "
        f"{chip.peak(dtype) / 1e12:,.0f} TFLOP/s for {dtype}, links of {chip.sent_s / 1e9:,.0f} GB/s{nodes}"
    )


def line(plan: Plan, config: Config, price: float) -> str:
    """Return the line of the report for one mesh."""
    modeled, compiled = plan.estimate, plan.compiled
    seconds = compiled.seconds if compiled else None
    dead = compiled.seconds_dead if seconds and compiled else modeled.seconds_dead
    rough = "" if seconds else "~"
    memory = f"{'' if compiled else '~'}{plan.bytes / GIB:.2f}"
    start = f"{'{}x{}'.format(*plan.mesh):>8} {memory:>9} {'yes' if plan.fits else 'no':>5} {_ms(modeled.seconds):>10}"
    if not plan.fits:
        return start
    roof = max(modeled.roofs, key=lambda name: modeled.roofs[name])
    rate = f"{rough}{config.train.batch_size / plan.seconds:,.0f}"
    hours = plan.hours(config.train.steps)
    cost = f" {rough + format(hours * math.prod(plan.mesh) * price, ',.2f'):>10}" if price else ""
    return (
        f"{start} {_ms(seconds):>10} {rough + _ms(dead) if dead else '-':>10} {_ms(modeled.roofs[roof]):>10} "
        f"{roof:>8} {rate:>12} {rough + format(hours, '.2f'):>8}{cost}"
    )


def _ms(seconds: float | None) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds else "-"


def details(plan: Plan, work: StepWork) -> str:
    """Return memory, the model's terms, roofs and collectives of the best mesh."""
    chip, modeled = plan.chip, plan.estimate
    memory, source = (plan.compiled.memory, "XLA") if plan.compiled else (modeled.memory, "model")
    options = work.config.train
    host_s = 4 * options.batch_size * work.d / plan.seconds
    lines = [
        "best: {}x{}".format(*plan.mesh),
        f"  memory ({source}): " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in memory.items())
        + f" GiB of {chip.hbm / GIB:.2f}",
        "  model: " + ", ".join(f"{name} {_ms(s)}" for name, s in modeled.terms.items() if s)
        + (f"; AuxK with many dead latents {_ms(modeled.dead_s)}" if modeled.dead_s else ""),
        "  roofs: " + ", ".join(f"{name} {_ms(s)}" for name, s in modeled.roofs.items() if s),
        f"  input: {host_s / 1e9:.2f} GB/s of float32 rows from all hosts together, at this speed",
    ]  # fmt: skip
    if chip.platform == "cuda" and plan.bytes > RESERVED * chip.hbm:
        lines.append("  JAX reserves 75 % of a GPU's memory: set XLA_PYTHON_CLIENT_MEM_FRACTION=0.92")
    collectives = plan.compiled.collectives if plan.compiled else modeled.collectives
    return "\n".join([*lines, *collective_lines(collectives)])


def collective_lines(collectives: Counter[Collective]) -> list[str]:
    kinds: dict[tuple[str, int], list[int]] = {}
    for collective, times in collectives.items():
        kinds.setdefault((collective.kind, collective.chips), []).extend([collective.bytes] * times)
    return [
        f"  {len(sizes)} {kind} over {chips} chips, {sum(sizes) / 1e6:,.1f} MB a chip"
        for (kind, chips), sizes in sorted(kinds.items())
    ]


def smallest_line(work: StepWork, kind: str, known: dict[str, list[Plan]], price: float) -> str:
    """Return the line that names the smallest slice that fits."""
    smallest = smallest_slice(work, kind, known)
    if smallest is None:
        return f"smallest that fits: none of {kind}, up to {CHIPS[kind].slices[-1]}"
    topology, plan = smallest
    hours = plan.hours(work.config.train.steps)
    cost = f", cost {hours * math.prod(plan.mesh) * price:,.2f}" if price else ""
    by = "XLA" if plan.compiled else "the model"
    size = f"{plan.bytes / GIB:.2f} GiB/chip by {by}, {hours:.2f} h{cost}"
    return f"smallest that fits: {topology}, mesh {'{}x{}'.format(*plan.mesh)}, {size}"


def main(argv: Sequence[str]) -> None:
    jax.config.update("jax_platforms", "cpu")  # nothing runs on an accelerator of this machine
    config, flags = parse(
        ["revelio_jax.plan", *argv],
        __doc__,
        topology=("v5e:4x4", "chips to plan for, for example v5e:4x4, v5p:2x2x2, h100:8, h200:8 or b200:16"),
        mesh=((), "data x feature, for example 4x4; may be repeated; empty: rank all, compile the three best"),
        width=(0, "width of the activation; 0: look it up in the store, the model's folder, or a table of hub models"),
        smallest=(True, "also search for the smallest slice that fits"),
        price=(0.0, "price of one chip for one hour, in any currency; adds the column cost; 0: no column"),
    )
    plan(config, **{"meshes" if name == "mesh" else name: value for name, value in flags.items()})


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
