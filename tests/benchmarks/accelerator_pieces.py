"""Measure the pieces of a train step on JAX's first device, variants side by side, for accelerator.py.

    python tests/benchmarks/accelerator_pieces.py D N K B DEADLINE [small]

Latents fire in codes about as in a trained SAE: the r-th most frequent one as 1 / (r + 50).
"""

import functools
import inspect
import math
import time
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
from accelerator_rows import Report, Size, Skipped, milliseconds, start

from revelio_jax.config import SaeConfig, TrainConfig
from revelio_jax.sae import initial, sharding, sparse, topk
from revelio_jax.sae.code import Code
from revelio_jax.sae.gradients import Gradients
from revelio_jax.sae.kernels import choice, decode_error, segment_sum, threshold
from revelio_jax.training import optimizer

GIB = 2**30
DTYPE = "bfloat16"  # of product inputs
COMPARED = 256  # rows of top-k that are compared with lax.top_k


def jax_context() -> dict[str, str]:
    return {"device": jax.devices()[0].device_kind, "jax": jax.__version__}


def ceilings(report: Report) -> tuple[float | None, float | None]:
    """Report a copy and products. Return the ms of the product and of a copied byte, None where there is no row."""
    size = report.size
    copied, flop = 2 * 4 * size.n * size.d, 2 * size.batch * size.d * size.n

    def copy():
        return measured(lambda W_FD: W_FD * 2, normal(0, size.n, size.d), moved=copied)

    def product(out):
        arrays = normal(1, size.batch, size.d, dtype=DTYPE), normal(2, size.n, size.d, dtype=DTYPE)
        return measured(lambda x, W: jnp.matmul(x, W.T, preferred_element_type=out), *arrays, flop=flop)

    copy_row = report.row("ceilings", "copy of a weight matrix", copy)
    product_row = report.row("ceilings", "encoder product, bfloat16 to float32", lambda: product(jnp.float32))
    report.row("ceilings", "encoder product, bfloat16 to bfloat16", lambda: product(jnp.bfloat16))
    return product_row["ms"], copy_row["ms"] and copy_row["ms"] / copied


def top_k(report: Report) -> None:
    d, n, k, batch = report.size
    pre_BF = jax.jit(lambda x_BD, W_FD: sparse.product(x_BD, W_FD.T, DTYPE))(normal(0, batch, d), normal(1, n, d))
    bias_F = 0.1 * normal(2, n)
    few = min(batch, COMPARED)  # rows, because a sort of all may not fit into memory
    expected = functools.cache(lambda: jax.jit(form_stable)(pre_BF[:few], bias_F))

    def form_stable(pre_BF, bias_F):
        return jax.lax.top_k(pre_BF + bias_F, k)

    def form_unstable(pre_BF, bias_F):
        return jax.lax.top_k(pre_BF + bias_F, k, is_stable=False)

    def measure(form):
        if form is form_unstable and "is_stable" not in inspect.signature(jax.lax.top_k).parameters:
            raise Skipped("this release of JAX has only a stable top_k")
        if form not in (form_stable, form_unstable) and (n % topk.GROUP or n // topk.GROUP <= k):
            raise Skipped("rows do not split into more than k groups")
        fields = measured(form, pre_BF, bias_F, moved=pre_BF.nbytes, twice=True)
        found = jax.jit(form)(pre_BF, bias_F)
        same = [bool(jnp.array_equal(a[:few], b)) for a, b in zip(found, expected(), strict=True)]
        return fields | {"values_equal": same[0], "indices_equal": same[1]}

    def measure_threshold():
        require("threshold", n, k)
        low_B = jax.jit(threshold.pallas, static_argnums=1)(pre_BF + bias_F, k)[0]
        fields = measured(lambda pre_BF: threshold.pallas(pre_BF, k), pre_BF, moved=pre_BF.nbytes, twice=True)
        return fields | {"values_equal": bool(jnp.array_equal(low_B[:few], jnp.maximum(expected()[0][:, -1], 0)))}

    neighbors, strided = (functools.partial(topk.two_stages, k=k, strided=strided) for strided in (False, True))
    report.row("top-k", "lax.top_k", lambda: measure(form_stable))
    report.row("top-k", "two_stages, groups of neighbors", lambda: measure(neighbors))
    report.row("top-k", "two_stages, strided groups", lambda: measure(strided))
    report.row("top-k", "lax.top_k, is_stable=False", lambda: measure(form_unstable))
    report.row("top-k", "tournament", lambda: measure(functools.partial(topk.tournament, k=k)))
    report.row("top-k", "threshold kernel", measure_threshold)


def weight_gradient(report: Report) -> None:
    d, n, k, batch = report.size
    values_BK, indices_BK = random_code(report.size)
    rows_BD = normal(3, batch, d, dtype=DTYPE)
    arrays = values_BK, indices_BK, rows_BD
    expected_FD = functools.cache(lambda: jax.jit(plain)(*arrays))

    def plain(values_BK, indices_BK, rows_BD):
        return segment_sum.xla(values_BK, indices_BK, rows_BD, n).grad_FD

    def kernel(values_BK, indices_BK, rows_BD):
        return segment_sum.pallas(values_BK, indices_BK, rows_BD, n).grad_FD

    def add_outer(products):
        sae = config(report.size, products)
        return lambda values_BK, indices_BK, rows_BD: sparse.add_outer(
            jnp.zeros((n, d)), values_BK, indices_BK, rows_BD, sae
        )

    def by_mask(values_BK, indices_BK, rows_BD, pre_BF):
        code = Code(values_BK, indices_BK).as_matrix(pre_BF)
        return code.add_outer(jnp.zeros((n, d)), rows_BD, config(report.size, "dense")).grad_FD

    def measure(form, *more):
        if form is kernel:
            require("segment_sum", d, k)
        fields = measured(form, *arrays, *more, twice=True)
        found_FD = jax.jit(form)(*arrays, *more)
        difference = jax.jit(lambda a, b: jnp.abs(a - b).max() / jnp.abs(b).max())(found_FD, expected_FD())
        return fields | {"difference": float(f"{float(difference):.1e}")}

    def measure_mask():
        row_B1 = jnp.arange(batch)[:, None]
        pre_BF = jax.jit(lambda v, i: jnp.full((batch, n), -1.0).at[row_B1, i].set(v))(values_BK, indices_BK)
        return measure(by_mask, pre_BF)

    report.row("weight gradient", "segment_sum kernel", lambda: measure(kernel))
    report.row("weight gradient", "products=sparse", lambda: measure(add_outer("sparse")))
    report.row("weight gradient", "products=atomic", lambda: measure(add_outer("atomic")))
    report.row("weight gradient", "products=dense, code by mask", measure_mask)


def decode(report: Report) -> None:
    d, n, k, batch = report.size
    values_BK, indices_BK = random_code(report.size)
    W_FD, x_BD, b_D = normal(4, n, d, dtype=DTYPE), normal(5, batch, d), normal(6, d)
    moved = 2 * batch * k * d

    def both(values_BK, indices_BK, W_FD, x_BD, b_D):
        error_BD = x_BD - sparse.weighted_rows(values_BK, indices_BK, W_FD) - b_D
        return error_BD, sparse.dots(error_BD, indices_BK, W_FD)

    arrays = values_BK, indices_BK, W_FD, x_BD, b_D

    def kernel():
        require("decode_error", d, k)
        return measured(decode_error.pallas, *arrays, moved=moved, twice=True)

    report.row("decode", "decode_error kernel", kernel)
    report.row("decode", "weighted_rows, then dots", lambda: measured(both, *arrays, moved=2 * moved, twice=True))
    decoding = functools.partial(measured, sparse.weighted_rows, values_BK, indices_BK, W_FD, moved=moved, twice=True)
    report.row("decode", "weighted_rows", decoding)
    report.row("decode", "dots", functools.partial(measured, sparse.dots, x_BD, indices_BK, W_FD, moved=moved))


def adam(report: Report) -> None:
    size, train = report.size, TrainConfig(batch_size=report.size.batch)
    mesh = sharding.make_mesh(1, 1, size.batch, size.n, jax.devices()[:1])

    def measure(products):
        sae = config(size, products)
        if products == "kernels":
            require("optimizer_rows", size.d, size.k)
        params = {"W_enc_FD": normal(0, size.n, size.d), "W_dec_FD": initial.unit_rows(normal(1, size.n, size.d))}
        params |= {"b_enc_F": normal(2, size.n), "b_dec_D": normal(3, size.d)}
        grads = {name: normal(4 + i, *param.shape) for i, (name, param) in enumerate(params.items())}
        squares = {name: jnp.square(grad.reshape(len(grad), -1)).sum(1) for name, grad in grads.items()}
        gradients = Gradients(grads, squares, (grads["W_dec_FD"] * params["W_dec_FD"]).sum(1))

        def step(state, gradients):
            params, rounded, moments, norm = optimizer.apply(*state, gradients, sae, train, mesh)
            return (params, moments), (rounded, norm)

        state = params, optimizer.make_optimizer(train).init(params)
        # Bytes that the kernel moves per weight: four float32 read, three written, and the copy in bfloat16.
        return measured(step, state, gradients, moved=30 * 2 * size.n * size.d, donate=True)

    report.row("optimizer", "optimizer_rows kernel", lambda: measure("kernels"))
    report.row("optimizer", "Optax", lambda: measure("sparse"))


def kernels(report: Report) -> None:
    """Compare every kernel with its plain form on this device."""
    device = jax.devices()[0]

    def check(kernel, width):
        require(kernel, width, report.size.k)
        difference = choice.disagreement(kernel, device, width, report.size.k)
        return {"agrees": difference is None} | ({"difference": difference} if difference else {})

    for kernel in choice.KERNELS:
        width = report.size.n if kernel == "threshold" else report.size.d
        report.row("kernels", kernel, functools.partial(check, kernel, width))


def measured(
    function: Callable[..., typing.Any],
    *arrays: typing.Any,
    flop: int = 0,
    moved: int = 0,
    twice: bool = False,
    donate: bool = False,
) -> dict:
    """Return the fields of a row for a function of arrays.

    ``flop`` are its operations and ``moved`` the bytes that it has to move. ``twice`` compares the bits of two calls.
    With ``donate``, the function returns its first argument anew, and other results.
    """
    began = time.perf_counter()
    program = jax.jit(function, donate_argnums=0 if donate else ()).lower(*arrays).compile()
    compile_s = time.perf_counter() - began
    state, result = arrays[0], None

    def run(count: int) -> None:
        nonlocal state, result
        for _ in range(count):
            if donate:
                state, result = program(state, *arrays[1:])
            else:
                result = program(*arrays)
        jax.block_until_ready(result)

    ms = milliseconds(run)
    memory = program.memory_analysis()
    fields = {"ms": round(ms, 4), "compile_s": round(compile_s, 1)}
    fields |= {"temp_gib": round(memory.temp_size_in_bytes / GIB, 3)} if memory else {}
    fields |= {"tflop_s": round(flop / ms / 1e9, 2)} if flop else {}
    fields |= {"tb_s": round(moved / ms / 1e9, 3)} if moved else {}
    return fields | ({"bit_same": checksum(program(*arrays)) == checksum(program(*arrays))} if twice else {})


def checksum(tree: typing.Any) -> tuple[int, ...]:
    """Return a number for each array of a tree that depends on all its bits and their places."""
    return tuple(jax.device_get(_checksums(jax.tree.leaves(tree))))


@jax.jit
def _checksums(arrays: list[jax.Array]) -> list[jax.Array]:
    def one(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]).astype(jnp.uint32)
        strides = [math.prod(x.shape[axis + 1 :]) for axis in range(x.ndim)]
        place = sum(
            jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
            for axis, stride in enumerate(strides)
        )
        return (bits * (2 * place + 1)).sum(dtype=jnp.uint32)  # modulo 2**32, so the order of additions does not count

    return [one(x) for x in arrays]


def normal(seed: int, *shape: int, dtype: str = "float32") -> jax.Array:
    return jax.jit(lambda key: jax.random.normal(key, shape, dtype))(jax.random.key(seed))


def random_code(size: Size) -> tuple[jax.Array, jax.Array]:
    """Return values > 0 and distinct latents [B, K], drawn without replacement by the Gumbel trick."""
    code_key, order_key = jax.random.split(jax.random.key(7))

    @jax.jit
    def draw(key, order_F):
        logit_F = -jnp.log(jnp.arange(size.n) + 50.0)
        return order_F[topk.top_k(logit_F + jax.random.gumbel(key, (size.batch, size.n)), size.k)[1]]

    indices_BK = draw(code_key, jax.random.permutation(order_key, size.n).astype(jnp.int32))
    return jnp.abs(normal(8, size.batch, size.k)) + 0.1, indices_BK


def config(size: Size, products: str, **more: typing.Any) -> SaeConfig:
    return SaeConfig(**{"k": size.k, "latents": size.n, "products": products, "matmul_dtype": DTYPE} | more)


def require(kernel: str, width: int, slots: int) -> None:
    """Raise Skipped if the kernel cannot run on this device."""
    if reason := choice.obstacle(kernel, jax.devices()[0], width, slots):
        raise Skipped(reason)


def main() -> None:
    report = start(jax_context())
    for part in (top_k, weight_gradient, decode, adam, kernels):
        report.guard(part)


if __name__ == "__main__":
    main()
