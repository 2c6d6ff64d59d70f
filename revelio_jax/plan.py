"""Compile the train step for a TPU that this machine does not have, and print memory, time and collectives.

    revelio plan --config flux_t5 --topology v5e:4x4
    revelio plan --config flux_t5 --topology v5e:4x4 --mesh 4x4 --smallest no

Needs `pip install '.[plan]'`, which brings libtpu with XLA's compiler for TPU. No TPU, store or model is needed; if
the store exists, its width and number of rows are used. Compiling for one mesh takes about a minute.

One line per mesh (data x feature) of the topology's chips:

    GiB/chip    arguments, temporaries and program, as XLA places them; XLA refuses a mesh that does not fit
    XLA         the step without dead latents: XLA's cycle estimates, plus the bytes of collectives, gathers,
                scatters and sorts at the chip's published rates, since XLA estimates no cycles for these
    dead        the same for a step with many dead latents, on which AuxK takes its most expensive branch
    roof        a lower bound for any program, with its name: the largest of the encoder's and the sparse products
                at peak rate, reading and writing the state once, and the collectives
    rows/s, h   from the column XLA, for config.train.steps

These numbers are a compiler's estimates, not measurements. Gathers and scatters of single rows in particular are
often slower than their bytes suggest.
"""

import sys
from collections.abc import Sequence

import jax

from revelio_jax.cli import parse
from revelio_jax.config import Config
from revelio_jax.errors import report_errors
from revelio_jax.planning.chips import CHIPS, GIB, Chip, parse_topology
from revelio_jax.planning.compiled_step import Plan, StepWork, describe_work, plan_mesh
from revelio_jax.planning.meshes import place_mesh, select_meshes, smallest_slice

HEAD = f"{'mesh':>8} {'GiB/chip':>9} {'fits':>5} {'XLA':>9} {'dead':>9} {'roof':>19} {'rows/s':>11} {'h':>7}"


def plan(config: Config, topology: str, meshes: tuple[str, ...], width: int, smallest: bool) -> None:
    """Print the report. Raise InputError for a wrong topology, mesh or width, before anything is compiled."""
    kind, _ = parse_topology(topology)
    work = describe_work(config, width)
    device_meshes = [place_mesh(work, topology, shape) for shape in select_meshes(work, topology, meshes)]

    print(describe(work, topology))
    print(HEAD, flush=True)
    plans = []
    for mesh in device_meshes:
        plans.append(plan_mesh(work, mesh, CHIPS[kind]))
        print(line(plans[-1], config), flush=True)
    fitting = [plan for plan in plans if plan.fits]
    if fitting:
        print(details(min(fitting, key=lambda plan: plan.seconds), CHIPS[kind]))
    if smallest:
        print(smallest_line(work, kind, {topology: plans}))


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
    """Return the line of the report for one mesh."""
    start = f"{'{}x{}'.format(*plan.mesh):>8} {plan.memory / GIB:>9.2f} {'yes' if plan.fits else 'no':>5}"
    if not plan.roofs:
        return start
    roof = max(plan.roofs, key=lambda name: plan.roofs[name])
    return (
        f"{start} {1e3 * plan.seconds:>6.1f} ms {1e3 * plan.seconds_dead:>6.1f} ms "
        f"{1e3 * plan.roofs[roof]:>7.1f} ms {roof:>8} {config.train.batch_size / plan.seconds:>11,.0f} "
        f"{plan.hours(config.train.steps):>7.1f}"
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


def smallest_line(work: StepWork, kind: str, known: dict[str, list[Plan]]) -> str:
    """Return the line that names the smallest slice that fits."""
    smallest = smallest_slice(work, kind, known)
    if smallest is None:
        return f"smallest that fits: none of {kind}, up to {CHIPS[kind].slices[-1]}"
    topology, plan = smallest
    size = f"{plan.memory / GIB:.2f} GiB/chip, {plan.hours(work.config.train.steps):.1f} h"
    return f"smallest that fits: {topology}, mesh {'{}x{}'.format(*plan.mesh)}, {size}"


def main(argv: Sequence[str]) -> None:
    jax.config.update("jax_platforms", "cpu")  # nothing runs on an accelerator of this machine
    config, flags = parse(
        ["revelio_jax.plan", *argv],
        __doc__,
        topology=("v5e:4x4", "TPU slice to compile for, for example v5e:4x4 or v5p:2x2x2"),
        mesh=((), "data x feature, for example 4x4; may be repeated; empty: every mesh that divides batch and latents"),
        width=(0, "width of the activation; 0: look it up in the store, the model's folder, or a table of hub models"),
        smallest=(True, "also search for the smallest slice that fits"),
    )
    plan(config, flags["topology"], flags["mesh"], flags["width"], flags["smallest"])


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
