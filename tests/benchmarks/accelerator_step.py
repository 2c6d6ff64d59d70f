"""Measure whole train steps on JAX's first device, for accelerator.py.

    python tests/benchmarks/accelerator_step.py D N K B DEADLINE [small]

The floor of a step is the encoder product in bfloat16 as measured here, plus, at the speed of a copy as measured here,
the bytes that no step avoids: Adam's 24 per parameter, and three passes over the decoder rows of all slots in bfloat16.
Memory is compared with the parameters, both moments, the gradients and the batch, all in float32.
"""

import dataclasses
import functools
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np
from accelerator_pieces import GIB, ceilings, checksum, config, jax_context, require
from accelerator_rows import Report, Size, milliseconds, start

from revelio_jax.config import SaeConfig, TrainConfig
from revelio_jax.sae import initial, sharding
from revelio_jax.training import dispatch
from revelio_jax.training.step import State, abstract_state, initial_state, make_train_step, state_shardings

STEPS = 3  # of runs whose bits are compared
DISPATCH = 8  # steps of a dispatch
DEAD = 0.05  # share of the latents
K_AUX = 256  # the default of config.sae.k_aux
LARGEST_SAVE = 16 * GIB  # bytes of a state that is saved on the host and restored


class Setting(typing.NamedTuple):
    """One form of the step."""

    sae: SaeConfig
    dead: float = 0.0
    dispatched: bool = False

    @property
    def name(self) -> str:
        sae = self.sae
        aux_k = f"AuxK, {self.dead:.0%} dead" if sae.k_aux else "no AuxK"
        return f"{sae.products}, {sae.matmul_dtype}, {aux_k}" + (f", {DISPATCH} steps at once" * self.dispatched)


def settings(size: Size, small: bool) -> list[Setting]:
    """Return the forms in the order of measuring: the expected fastest first, and forms with AuxK after the others.

    AuxK has many branches, which take long to compile.
    """
    plain = [config(size, products, k_aux=0) for products in ("kernels", "threshold", "atomic", "sparse", "dense")]
    kernels, _, _, sparse, _ = plain
    if small:
        aux_k = dataclasses.replace(sparse, k_aux=size.n // 4)
        return [Setting(kernels), Setting(sparse), Setting(sparse, dispatched=True), Setting(aux_k, DEAD)]
    dispatched = [Setting(sae, dispatched=True) for sae in (kernels, sparse)]
    float32 = config(size, "sparse", k_aux=0, matmul_dtype="float32")
    aux_k = [dataclasses.replace(sae, k_aux=min(K_AUX, size.n)) for sae in plain]
    with_aux_k = [Setting(sae, dead) for sae in aux_k for dead in (0.0, DEAD)]
    return [*map(Setting, plain), *dispatched, Setting(float32), *with_aux_k]


class Steps:
    """Compiled steps of one size on one device, and random rows of a batch."""

    def __init__(self, size: Size):
        self.size, self.train = size, TrainConfig(batch_size=size.batch)
        self.mesh = sharding.make_mesh(1, 1, size.batch, size.n, jax.devices()[:1])
        rows_BD = np.random.default_rng(0).standard_normal((size.batch, size.d), np.float32)
        self.x_BD = sharding.put_batch(self.mesh, rows_BD)
        self.dead_F = np.random.default_rng(1).permutation(size.n)[: round(DEAD * size.n)]
        self.program = functools.lru_cache(maxsize=1)(self._program)  # AuxK is compiled once for all dead shares
        self.fresh = functools.cache(self._fresh)

    def _fresh(self, matmul_dtype: str, dead: float) -> typing.Any:
        """Return the compiled function for the state before the first step.

        Dead latents have small encoder rows, and so stay dead.
        """
        size, center_D = self.size, np.zeros(self.size.d, np.float32)
        sae = config(size, "sparse", matmul_dtype=matmul_dtype, init="unit")

        def make() -> State:
            params = initial.initial_params(sae, 0, size.n, center_D, center_D[None], self.mesh)
            since_F = jnp.zeros(size.n, jnp.int32)
            if dead:
                params["W_enc_FD"] = params["W_enc_FD"].at[self.dead_F].multiply(0.1)
                since_F = since_F.at[self.dead_F].set(sae.dead_after_rows)
            state = initial_state(params, center_D, 1.0, sae, self.train, self.mesh)
            return dataclasses.replace(state, rows_since_fired_F=since_F)

        return jax.jit(make, out_shardings=state_shardings(sae, self.train, self.mesh))

    def _program(self, sae: SaeConfig, dispatched: bool) -> tuple[typing.Any, jax.Array, float]:
        """Return the compiled step or dispatch, its rows and the seconds of compilation."""
        state = abstract_state(self.size.n, self.size.d, sae, self.train, self.mesh)
        step, x_BD = make_train_step(sae, self.train, self.mesh), self.x_BD
        if dispatched:
            step = dispatch.make_dispatch(step, state, DISPATCH, self.mesh)
            place = jax.NamedSharding(self.mesh, sharding.STACKED_BATCH)
            x_BD = jax.jit(lambda x_BD: jnp.stack([x_BD] * DISPATCH), out_shardings=place)(x_BD)
        began = time.perf_counter()
        program = step.lower(state, x_BD).compile()
        return program, x_BD, time.perf_counter() - began

    def measure(self, setting: Setting, floor_ms: float | None) -> dict:
        """Return the fields of a row."""
        size, sae = self.size, setting.sae
        if sae.products == "kernels":
            for kernel in ("segment_sum", "optimizer_rows"):
                require(kernel, size.d, size.k)
        if sae.products == "threshold":
            require("threshold", size.n, size.k)
        program, x_BD, compile_s = self.program(sae, setting.dispatched)
        fresh, run = self.fresh(sae.matmul_dtype, setting.dead), functools.partial(_run, program, x_BD)
        peak_before, metrics = peak_bytes(), {}

        state, first = run(fresh(), STEPS)
        saved = jax.device_get(state) if _bytes(state) <= LARGEST_SAVE else None
        state, later = run(state, STEPS)

        def repeat(count: int) -> None:
            nonlocal state, metrics
            for _ in range(count):
                state, metrics = program(state, x_BD)
            jax.block_until_ready(metrics)

        ms = milliseconds(repeat) / (DISPATCH if setting.dispatched else 1)
        del state  # two states may not fit into memory
        again = run(fresh(), STEPS)[1]
        fields = {"ms": round(ms, 4), "rows_per_s": round(1000 * size.batch / ms)}
        if floor_ms:
            fields |= {"floor_ms": round(floor_ms, 4), "ratio": round(ms / floor_ms, 2)}
        fields |= {"compile_s": round(compile_s, 1)} | _memory(program, peak_before, size)
        fields |= {"bit_same": again == first}
        if saved is not None:
            shardings = state_shardings(sae, self.train, self.mesh)
            fields["resumed_bit_same"] = run(jax.device_put(saved, shardings), STEPS)[1] == later
        last = {name: float(np.ravel(metrics[name])[-1]) for name in ("fvu", "dead_fraction")}
        return fields | {name: round(value, 4) for name, value in last.items()}


def _run(program: typing.Any, x_BD: jax.Array, state: State, steps: int) -> tuple[State, list[tuple[int, ...]]]:
    """Run steps and return the last state and the checksums of all."""
    sums = []
    for _ in range(steps):
        state, _ = program(state, x_BD)
        sums.append(checksum(state))
    return state, sums


def floor(size: Size, product_ms: float | None, byte_ms: float | None) -> float | None:
    """Return the floor of the module's docstring in ms, or None if a ceiling is unknown."""
    if product_ms is None or byte_ms is None:
        return None
    return product_ms + byte_ms * (24 * 2 * size.n * size.d + 3 * 2 * size.batch * size.k * size.d)


def peak_bytes() -> int:
    """Return the peak of the process so far, or 0 if the device does not report it."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def _bytes(tree: typing.Any) -> int:
    return sum(array.nbytes for array in jax.tree.leaves(tree))


def _memory(program: typing.Any, peak_before: int, size: Size) -> dict:
    """Return the compiled memory and, if the process reached a new peak during the row, the peak."""
    needed = 16 * 2 * size.n * size.d + 4 * size.batch * size.d
    compiled, peak, fields = program.memory_analysis(), peak_bytes(), {"needed_gib": round(needed / GIB, 3)}
    if compiled:
        fields["temp_gib"] = round(compiled.temp_size_in_bytes / GIB, 3)
    if peak > peak_before:
        fields |= {"peak_gib": round(peak / GIB, 3), "peak_ratio": round(peak / needed, 2)}
    return fields


def measure(report: Report) -> None:
    floor_ms, steps = floor(report.size, *ceilings(report)), Steps(report.size)
    for setting in settings(report.size, report.small):
        report.row("step", setting.name, functools.partial(steps.measure, setting, floor_ms))


if __name__ == "__main__":
    start(jax_context()).guard(measure)
