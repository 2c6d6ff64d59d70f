"""Plan steps on 1 to 256 chips: bytes, seconds and the best mesh as functions of latents, batch and chips.

    python tests/benchmarks/scaling.py --picture docs/measurements/scaling.png
    python tests/benchmarks/scaling.py --compile h100,v5p,host    # also compile some of the points with XLA

Nothing is run. Curves and tables are the model's (revelio_jax.planning.model). ``--compile`` names kinds of chips whose
compilers are installed, or ``host`` for 8 devices of this machine's CPU; each point takes seconds on h100 and host, and
minutes on TPUs. Prints the tables of docs/measurements/scaling.md; the picture needs matplotlib.
"""

import argparse
import dataclasses
import itertools
import os
import pathlib

# Read when JAX starts its devices.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax

from revelio_jax.config import Config, SaeConfig, TrainConfig
from revelio_jax.planning.chips import CHIPS, GIB, parse_topology
from revelio_jax.planning.compiled_step import Compiled, compile_mesh
from revelio_jax.planning.meshes import Plan, compile_plans, possible_meshes, rank
from revelio_jax.planning.model import estimate
from revelio_jax.planning.work import StepWork
from revelio_jax.sae import sharding

D, K = 4096, 32
LATENTS = [2**power for power in range(14, 23)]
BATCHES = [2**power for power in range(11, 18)]
MILLION = 2**20
CHIPS_OF_TABLES = (1, 8, 64, 256)
POINTS = {  # to compile: topology, mesh, latents
    "h100": [
        ("h100:8", (1, 8), 65_536), ("h100:8", (8, 1), 65_536), ("h100:64", (1, 64), 65_536),
        ("h100:64", (8, 8), 65_536), ("h100:256", (1, 256), 65_536), ("h100:256", (32, 8), 65_536),
        ("h100:8", (1, 8), MILLION), ("h100:64", (8, 8), MILLION), ("h100:256", (32, 8), MILLION),
    ],
    "v5p": [("v5p:2x2x2", (1, 8), MILLION), ("v5p:4x4x4", (1, 64), MILLION)],
}  # fmt: skip


def run(latents: int = 65_536, batch: int = 8192, d: int = D) -> StepWork:
    """Return a run with the products of an accelerator."""
    sae = SaeConfig(k=K, matmul_dtype="bfloat16")
    return StepWork(Config(sae=sae, train=TrainConfig(batch_size=batch)), "site", d, latents, None)


def best(work: StepWork, kind: str, chips: int) -> Plan | None:
    """Return the fastest mesh that fits by the model."""
    plans = [plan for plan in rank(work, kind, possible_meshes(work, chips)) if plan.fits]
    return plans[0] if plans else None


def mesh_name(mesh: tuple[int, int]) -> str:
    return "{}x{}".format(*mesh)


def table(head: str, rows: list[list[str]]) -> None:
    print(f"\n| {head} |")
    print("|" + "---|" * (head.count("|") + 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def print_meshes() -> None:
    """Print time and memory of every mesh of 8 chips, and of three for 64 and 256."""
    rows = []
    for chips, latents in itertools.product((8, 64, 256), (65_536, MILLION)):
        shapes = [(1, chips), (chips // 8, 8), (chips, 1)] if chips > 8 else [(1, 8), (2, 4), (4, 2), (8, 1)]
        for shape in shapes:
            plan = estimate(run(latents), shape, CHIPS["h100"])
            terms = [f"{1e3 * plan.terms[name]:.2f}" for name in ("encoder", "products", "top-k", "optimizer", "links")]
            fits = "" if plan.bytes <= CHIPS["h100"].hbm else " (does not fit)"
            memory = f"{plan.bytes / GIB:.2f}{fits}"
            rows.append([str(chips), f"{latents:,}", mesh_name(shape), memory, *terms, f"{1e3 * plan.seconds:.2f}"])
    table("chips | latents | mesh | GiB/chip | encoder | products | top-k | optimizer | links | step, ms", rows)


def print_winners() -> None:
    """Print the fastest mesh by latents, batch and chips."""
    for kind in ("h100", "v5p"):
        rows = []
        for chips, latents in itertools.product((8, 64, 256), (16_384, 65_536, 262_144, MILLION)):
            plans = [best(run(latents, batch), kind, chips) for batch in (2048, 8192, 32_768, 131_072)]
            cells = [f"{mesh_name(plan.mesh)}, {1e3 * plan.seconds:.2f} ms" if plan else "-" for plan in plans]
            rows.append([str(chips), f"{latents:,}", *cells])
        table(f"{kind}: chips | latents | B 2,048 | 8,192 | 32,768 | 131,072", rows)


def print_million() -> None:
    """Print the fastest mesh for a dictionary of a million latents on several slices."""
    rows = []
    for kind in ("v5p", "h100", "h200", "b200"):
        for shape in CHIPS[kind].slices:
            chips = parse_topology(f"{kind}:{shape}")[1]
            plan = best(run(MILLION), kind, chips)
            if chips > 256:
                continue
            cells = ["does not fit", "", "", ""]
            if plan:
                rate = 8192 / plan.seconds
                cells = [mesh_name(plan.mesh), f"{plan.bytes / GIB:.1f}", f"{1e3 * plan.seconds:.1f}", f"{rate:,.0f}"]
            rows.append([f"{kind}:{shape}", *cells])
    table("topology | mesh | GiB/chip | step, ms | rows/s", rows)


def print_compiled(kinds: list[str]) -> None:
    """Compile points and print XLA's memory and time beside the model's."""
    rows = []
    for kind in kinds:
        if kind == "host":
            for mesh in ((1, 8), (2, 4), (8, 1)):
                work = run(16_384, 1024, 512)
                work = dataclasses.replace(
                    work,
                    config=dataclasses.replace(work.config, sae=dataclasses.replace(work.config.sae, products="dense")),
                )
                placed = sharding.make_mesh(*mesh, 1024, 16_384)
                plan = Plan(
                    estimate(work, mesh, CHIPS["h100"]), CHIPS["h100"], compile_mesh(work, placed, CHIPS["h100"])
                )
                rows.append(compiled_row("8 host devices, d 512", mesh, 16_384, plan))
            continue
        for topology, mesh, latents in POINTS[kind]:
            plan = Plan(estimate(run(latents), mesh, CHIPS[kind]), CHIPS[kind])
            (plan,) = compile_plans(run(latents), topology, [plan])
            rows.append(compiled_row(topology, mesh, latents, plan))
            print("compiled", *rows[-1], flush=True)
    table("compiled for | mesh | latents | GiB/chip, XLA | model | sent MB/chip, XLA | model | ms, XLA | model", rows)


def compiled_row(name: str, mesh: tuple[int, int], latents: int, plan: Plan) -> list[str]:
    compiled = plan.compiled
    assert isinstance(compiled, Compiled)
    sent = [
        sum(times * collective.sent for collective, times in collectives.items() if collective.chips > 1) / 1e6
        for collectives in (compiled.collectives, plan.estimate.collectives)
    ]
    memory = [compiled.bytes / GIB, plan.estimate.bytes / GIB]
    ms = ["-" if compiled.seconds is None else f"{1e3 * compiled.seconds:.1f}"]
    ms += [f"{1e3 * plan.estimate.seconds:.1f}"] if not name.startswith("8 host") else ["-"]
    return [name, mesh_name(mesh), f"{latents:,}", *(f"{x:.2f}" for x in memory), *(f"{x:,.0f}" for x in sent), *ms]


def draw(path: pathlib.Path) -> None:
    """Draw memory and time by latents, rows/s by batch, and time by mesh."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, ((memory, step), (rate, mesh_axes)) = plt.subplots(2, 2, figsize=(11, 8), constrained_layout=True)
    for chips in CHIPS_OF_TABLES:
        plans = [(latents, best(run(latents), "h100", chips)) for latents in LATENTS]
        points = [(latents, plan) for latents, plan in plans if plan]
        x = [latents for latents, _ in points]
        label = f"{chips} H100"
        memory.plot(x, [plan.bytes / GIB for _, plan in points], marker="o", label=label)
        step.plot(x, [1e3 * plan.seconds for _, plan in points], marker="o", label=label)
        plans = [(batch, best(run(65_536, batch), "h100", chips)) for batch in BATCHES if batch % chips == 0]
        points = [(batch, plan) for batch, plan in plans if plan]
        rate.plot([b for b, _ in points], [b / plan.seconds / 1e6 for b, plan in points], marker="o", label=label)
    memory.axhline(CHIPS["h100"].hbm / GIB, color="gray", linestyle="--", label="memory of an H100")
    for axes, name in ((memory, "GiB per chip"), (step, "ms per step")):
        axes.set(xscale="log", yscale="log", xlabel="latents (d 4096, batch 8,192)", ylabel=name)
    rate.set(xscale="log", yscale="log", xlabel="batch (d 4096, 65,536 latents)", ylabel="million rows/s")
    feature = [2**power for power in range(7)]
    for (kind, latents, batch), style in zip(
        [("h100", 65_536, 8192), ("h100", MILLION, 8192), ("h100", 65_536, 131_072), ("v5p", 65_536, 8192),
         ("v5p", 65_536, 131_072)],
        ("o-", "s-", "^-", "o--", "^--"),
        strict=True,
    ):  # fmt: skip
        times = [1e3 * estimate(run(latents, batch), (64 // f, f), CHIPS[kind]).seconds for f in feature]
        mesh_axes.plot(feature, times, style, label=f"64 {kind}, {latents:,} latents, batch {batch:,}")
    mesh_axes.set(xscale="log", yscale="log", xlabel="chips that split the latents, of 64", ylabel="ms per step")
    mesh_axes.set_ylim(top=4000)  # room for the legend
    mesh_axes.set_xticks(feature, map(str, feature))
    for axes in (memory, step, rate, mesh_axes):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle("Estimates of the model, fastest mesh that fits; nothing was run")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", default="", help="kinds of chips to compile for, for example h100,host")
    parser.add_argument("--picture", type=pathlib.Path, help="PNG file to write")
    flags = parser.parse_args()
    assert len(jax.devices()) == 8
    print(f"d {D}, k {K}, bfloat16 products, batch 8,192 unless given; jax {jax.__version__}")
    if flags.compile:
        print_compiled(flags.compile.split(","))
        return
    print_meshes()
    print_winners()
    print_million()
    if flags.picture:
        draw(flags.picture)


if __name__ == "__main__":
    main()
