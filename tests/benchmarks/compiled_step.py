"""Compile the train step for chips that this machine lacks, and print facts of the programs as a Markdown table.

    python tests/benchmarks/compiled_step.py      # H100: needs jax-cuda13-plugin and jax-cuda13-pjrt of jax's version
    python tests/benchmarks/compiled_step.py --topology v5e:1x1      # needs libtpu

It compiles each form of the products for each size, with bfloat16 products and without AuxK. The latents are split over
all chips. Nothing runs. Columns:

    temporaries, state      GiB of buffers within a step, and of its arguments
    sorts, widest           sorts, and the most elements that one of them sorts together
    scatters                scatters of floats that add to the same place in any order
    long loops              loops with more than k trips, or with a number of trips that cannot be read. The loop that
                            decides ties of top-k is one: it has no trip without tied rows, and at most k
    kernels, launched       fusions, custom calls and copies: in the program, and with the trips of their loops
    ms                      XLA's estimate as in `revelio plan`, for TPUs only; it counts nothing for a Pallas kernel
"""

import argparse
import os
import re

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from accelerator import SIZES, parse_sizes
from accelerator_rows import Size

from revelio_jax.config import SaeConfig, TrainConfig
from revelio_jax.errors import InputError, report_errors
from revelio_jax.planning.chips import CHIPS, parse_topology
from revelio_jax.planning.compiled_step import estimated_seconds
from revelio_jax.planning.devices import can_compile, topology_devices
from revelio_jax.sae import sharding
from revelio_jax.training.step import abstract_state, make_train_step

FORMS = {"cuda": ("dense", "sparse", "atomic", "kernels"), "tpu": ("dense", "threshold")}
COLUMNS = ("temporaries", "state", "sorts", "widest", "scatters", "long loops", "kernels", "launched", "ms")
PACKAGES = {"cuda": "jax-cuda13-plugin", "tpu": "libtpu"}
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\(")
TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


def compiled_step(size: Size, products: str, topology: str) -> jax.stages.Compiled:
    """Compile the step of one size and form, with the latents split over all chips."""
    sae = SaeConfig(k=size.k, latents=size.n, k_aux=0, products=products, matmul_dtype="bfloat16")
    train = TrainConfig(batch_size=size.batch)
    mesh = sharding.make_mesh(1, None, size.batch, size.n, topology_devices(topology))
    place = jax.NamedSharding(mesh, sharding.HOST_BATCH)
    x_BD = jax.ShapeDtypeStruct((size.batch, size.d), jnp.float32, sharding=place)
    state = abstract_state(size.n, size.d, sae, train, mesh)
    return make_train_step(sae, train, mesh).lower(state, x_BD).compile()


def facts(program: jax.stages.Compiled, k: int, topology: str) -> list[str]:
    """Return the cells of COLUMNS."""
    memory, text = program.memory_analysis(), program.as_text()
    bodies: dict[str, list[str]] = {}
    entry = body = ""
    for line in text.splitlines():
        if match := HEADER.match(line):
            body = match[2]
            bodies[body] = []
            entry = body if match[1] else entry
        elif body:
            bodies[body].append(line)
    kernels = launched = long = 0

    def walk(name: str, times: int) -> None:
        nonlocal kernels, launched, long
        for line in bodies[name]:
            match = INSTRUCTION.match(line)
            opcode = match[2] if match else ""
            if opcode in ("fusion", "custom-call", "copy"):
                kernels, launched = kernels + 1, launched + times
            elif opcode == "while":
                trips = TRIPS.search(line)
                long += not trips or int(trips[1]) > k
                walk(re.search(r"body=%?([\w.\-]+)", line)[1], times * int(trips[1] if trips else 1))
            elif opcode == "call":
                walk(re.search(r"to_apply=%?([\w.\-]+)", line)[1], times)

    walk(entry, 1)
    widths = []
    for dims, axis in re.findall(r"= \(?\w+\[([\d,]+)\][^\n]* sort\([^\n]*dimensions=\{(\d+)\}", text):
        widths.append(int(dims.split(",")[int(axis)]))
    scatters = re.findall(r"= f\d+\[[^\n]* scatter\([^\n]*", text)
    unordered = [line for line in scatters if "unique_indices=true" not in line]
    gib = [f"{size / 2**30:.2f}" for size in (memory.temp_size_in_bytes, memory.argument_size_in_bytes)]
    numbers = len(widths), max(widths, default=0), len(unordered), long, kernels, launched
    kind, chips = parse_topology(topology)
    seconds = estimated_seconds(text, chips, CHIPS[kind])
    return [*gib, *(f"{number:,}" for number in numbers), f"{1e3 * seconds:.2f}" if seconds else "-"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--sizes", default=SIZES, help="d x latents x k x batch, one or more (default: %(default)s)")
    parser.add_argument("--products", help="forms of the products (default: all of the platform)")
    parser.add_argument("--topology", default="h100:1", help="chips, for example v5e:2x4 (default: %(default)s)")
    options = parser.parse_args()
    kind, chips = parse_topology(options.topology)
    known = [form for form in FORMS[CHIPS[kind].platform] if form != "threshold" or chips == 1]
    sizes, forms = parse_sizes(options.sizes), options.products.split(",") if options.products else known
    if unknown := [form for form in forms if form not in known]:
        raise InputError(f"--products has {unknown[0]!r}; it must be one of {', '.join(known)}")
    if not can_compile(kind):
        raise InputError(f"compiling for {kind} needs the package {PACKAGES[CHIPS[kind].platform]}")
    print(f"| size | products | {' | '.join(COLUMNS)} |\n|---|---|{'---:|' * len(COLUMNS)}", flush=True)
    for size in sizes:
        for form in forms:
            cells = facts(compiled_step(size, form, options.topology), size.k, options.topology)
            print(f"| {' x '.join(map(str, size))} | {form} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    with report_errors():
        main()
