"""Compare the time of training a grid of SAEs side by side and one after another, on a store created for it.

    python tests/benchmarks/grid.py --json grid.json
    python tests/benchmarks/grid.py --json grid.json --forms map,vmap --sizes 128x4x2048x300

The grid has four k and two learning rates: 8 members. ``together`` is the single program of revelio_jax.grid, in each
form that make_grid_step has. ``one_by_one`` is the program of revelio_jax.train for each member, in the same process.
Both read their rows from the store, and neither logs nor saves. A row is {d, n, batch, steps, members, form,
together_s, one_by_one_s, ratio, together_compile_s, one_by_one_compile_s, ratio_with_compile}: seconds of all steps
without compilation, and of compilation. A ratio above 1 means that together is faster. Forms and members take turns
for --rounds rounds, and the times are medians.
"""

import argparse
import contextlib
import itertools
import statistics
import tempfile
import time

import jax
import numpy as np
import results

from revelio_jax import grid
from revelio_jax.config import Config, ExtractConfig, SaeConfig, TrainConfig
from revelio_jax.errors import report_errors
from revelio_jax.sae import sharding
from revelio_jax.store import SitePlan, StorePlan, StoreWriter
from revelio_jax.training import loader
from revelio_jax.training.groups import Group, initial_states, make_grid_step, make_groups
from revelio_jax.training.step import make_train_step

CHUNK_ROWS, SHARD_ROWS, SHARDS, SAMPLE_ROWS, ACTIVE = 256, 16_384, 8, 32, 10
RATES = "train.learning_rate=1e-3,4e-4"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, metavar="FILE", help="file to write the rows to")
    parser.add_argument("--forms", default="map,vmap", help="forms of the grid step (default: %(default)s)")
    parser.add_argument("--ks", default="8,16,24,32", help="k of the members (default: %(default)s)")
    parser.add_argument("--sizes", default="128x4x2048x300,768x8x2048x20", help="width x expansion x batch x steps")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each (default: %(default)s)")
    options = parser.parse_args()
    results.check(options.json)
    rows = []
    for size in options.sizes.split(","):
        rows += measure(*map(int, size.split("x")), options.forms.split(","), options.ks, options.rounds)
    results.write(options.json, {"options": vars(options), "rows": rows})


def measure(d: int, expansion: int, batch: int, steps: int, forms: list[str], ks: str, rounds: int) -> list:
    with tempfile.TemporaryDirectory() as folder:
        write(folder, d)
        config = Config(
            extract=ExtractConfig(store=folder),
            sae=SaeConfig(expansion=expansion, k_aux=128, dead_after_rows=50_000),
            run=f"{folder}/run",
            train=TrainConfig(batch_size=batch, steps=steps, warmup_steps=steps // 10),
        )
        members, streams = grid.open_members(grid.configs(config, [f"sae.k={ks}", RATES]))
        mesh = sharding.make_mesh(1, 1, batch, members[0].latents, jax.devices()[:1])
        groups = {form: make_groups(members, form) for form in forms}

        def begin(form):
            return initial_states(groups[form], streams, mesh)

        def alone(member):
            (state,) = initial_states([Group((member,))], streams, mesh)
            return jax.tree.map(lambda array: array[0], state)

        x_BD = sharding.put_batch(mesh, np.zeros((batch, d), np.float32))  # an example batch to compile the steps
        compile_s, programs = {}, {}
        for form in forms:
            step = make_grid_step(groups[form], mesh, form)
            programs[form], compile_s[form] = compiled(step, begin(form), x_BD)
        singly = [compiled(make_train_step(m.config.sae, m.config.train, mesh), alone(m), x_BD) for m in members]

        def run(program, state):
            started = time.perf_counter()
            with contextlib.closing(loader.batches(*streams[0], 0)) as stream:
                for rows in itertools.islice(stream, steps):
                    x_BD = sharding.put_batch(mesh, rows)
                    state, measured = program(state, x_BD)
                jax.block_until_ready(measured)
            return time.perf_counter() - started

        taken = {name: [] for name in [*forms, "one"]}
        for _ in range(rounds):
            for form in forms:
                taken[form].append(run(programs[form], begin(form)))
            each = [run(program, alone(m)) for m, (program, _) in zip(members, singly, strict=True)]
            taken["one"].append(sum(each))
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    one_compile_s = sum(seconds for _, seconds in singly)
    found = []
    for form in forms:
        found.append(
            {
                "d": d,
                "n": members[0].latents,
                "batch": batch,
                "steps": steps,
                "members": len(members),
                "form": form,
                "together_s": seconds[form],
                "one_by_one_s": seconds["one"],
                "ratio": seconds["one"] / seconds[form],
                "together_compile_s": compile_s[form],
                "one_by_one_compile_s": one_compile_s,
                "ratio_with_compile": (seconds["one"] + one_compile_s) / (seconds[form] + compile_s[form]),
            }
        )
        print(" ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in found[-1].items()))
    return found


def compiled(step, *arguments):
    """Return the compiled step and the seconds to trace and compile it."""
    started = time.perf_counter()
    program = step.lower(*arguments).compile()
    return program, time.perf_counter() - started


def write(folder: str, d: int) -> None:
    """Write a store whose rows are sums of ACTIVE of 4 d directions, so that latents die as on real rows."""
    random = np.random.default_rng(0)
    directions = random.standard_normal((4 * d, d), np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    samples = SHARD_ROWS // SAMPLE_ROWS
    plan = StorePlan(
        (SitePlan("site", d, (SHARD_ROWS,) * SHARDS),),
        "float32",
        CHUNK_ROWS,
        samples,
        SHARDS * samples,
        {"created_by": "benchmark"},
    )
    writer = StoreWriter(folder, plan, [{"id": i} for i in range(plan.samples)])
    row = np.arange(SHARD_ROWS, dtype=np.int32)
    for shard in range(SHARDS):
        # Some directions are far more frequent than others, like words in prompts.
        chosen = (4 * d * random.random((SHARD_ROWS, ACTIVE)) ** 3).astype(int)
        weights = random.uniform(1, 2, (SHARD_ROWS, ACTIVE)).astype(np.float32)
        rows = sum(weights[:, i, None] * directions[chosen[:, i]] for i in range(ACTIVE))
        index = {"sample": shard * samples + row // SAMPLE_ROWS, "position": row % SAMPLE_ROWS}
        writer.write_shard(shard, {"site": {"activations": rows, **index, "timestep": 0 * row}})
    writer.finish()


if __name__ == "__main__":
    with report_errors():
        main()
