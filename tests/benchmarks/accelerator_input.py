"""Measure how rows reach JAX's first device, for accelerator.py.

    python tests/benchmarks/accelerator_input.py D N K B DEADLINE [small]

Copies and gathers have the rows of a batch. The modes of input_path.py follow, on a store of about 1 GB.
"""

import argparse
import functools
import tempfile
import time

import input_path
import jax
import numpy as np
from accelerator_pieces import jax_context, normal
from accelerator_rows import Report, milliseconds, start

from revelio_jax.sae import sharding
from revelio_jax.training import resident

RESIDENT_BYTES = 2**32  # of rows to gather from, more than any cache holds


def transfers(report: Report) -> None:
    size = report.size
    mesh = sharding.make_mesh(1, 1, size.batch, size.n, jax.devices()[:1])

    def rates(ms, moved):
        return {"ms": round(ms, 4), "rows_per_s": round(1000 * size.batch / ms), "gb_s": round(moved / ms / 1e6, 3)}

    def copy(dtype):
        x_BD = np.asarray(normal(0, size.batch, size.d, dtype=dtype))

        def run(count):
            jax.block_until_ready([sharding.put_batch(mesh, x_BD) for _ in range(count)])

        ms = milliseconds(run)
        return {
            "ms": round(ms, 4),
            "rows_per_s": round(1000 * size.batch / ms),
            "gb_s": round(x_BD.nbytes / ms / 1e6, 2),
        }

    def gather():
        rows = 1024 if report.small else RESIDENT_BYTES // (2 * size.d)
        rows_ND = jax.device_put(
            normal(1, rows, size.d, dtype="bfloat16"), jax.NamedSharding(mesh, sharding.HOST_BATCH)
        )
        layout = resident.Layout(rows, [], [], True)
        gather = resident.make_gather(resident.ResidentRows(rows_ND, layout), 1, mesh)
        place_1B = np.random.default_rng(0).integers(rows, size=(1, size.batch), dtype=np.int32)

        def run(count):
            for _ in range(count):
                x_BD = gather(place_1B)
            jax.block_until_ready(x_BD)

        return rates(milliseconds(run), 2 * size.batch * size.d)

    report.row("input", "gather of resident rows, bfloat16", gather)
    report.row("input", "host to device, bfloat16", lambda: copy("bfloat16"))
    report.row("input", "host to device, float32", lambda: copy("float32"))


def feeds(report: Report) -> None:
    """Report the modes of input_path.py."""
    size = report.size
    options = argparse.Namespace(
        gb=0.001 if report.small else 1, d=size.d, dtype="bfloat16", lanes=1, rounds=1 if report.small else 3,
        latents=size.n, steps=0 if report.small else 30, steps_per_dispatch=None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for row in input_path.measure(folder, options):
            report.row("input", row["mode"], functools.partial(fields_of, row))
            if time.time() > report.deadline:
                break


def fields_of(row: dict) -> dict:
    """Return the fields of a row of input_path.py."""
    fields = {"rows_per_s": round(row["rows_per_s"]), "gb_s": round(row["mb_per_s"] / 1000, 3)}
    return fields | ({} if row["wait_share"] is None else {"wait_share": round(row["wait_share"], 4)})


if __name__ == "__main__":
    report = start(jax_context())
    for part in (transfers, feeds):
        report.guard(part)
