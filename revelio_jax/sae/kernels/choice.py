"""Which kernels can be used on a device, and whether they compute there what their plain forms compute."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from revelio_jax.config import SaeConfig
from revelio_jax.errors import InputError
from revelio_jax.sae import forms, initial, module, topk
from revelio_jax.sae.kernels import decode_error, optimizer_rows, segment_sum, threshold

KERNELS = ("segment_sum", "optimizer_rows", "decode_error", "threshold")
# The oldest release with which the kernels were compiled. Their interface changed between earlier ones.
OLDEST_JAX = {"gpu": (0, 12, 0), "tpu": (0, 10, 2)}
# The form with kernels that takes the place of a form on a platform.
WITH_KERNELS = {("gpu", "sparse"): "kernels", ("tpu", "dense"): "threshold"}
CAPABILITY = "9.0"  # of the GPUs that the kernels were compiled for: H100, H200
LATENTS, ROWS = 48, 2 * segment_sum.WINDOW + 40  # of the self-check: a latent of all rows fills whole windows

Form = Callable[..., typing.Any]


def with_kernels(sae: SaeConfig, latents: int, d: int, mesh: jax.sharding.Mesh) -> tuple[SaeConfig, str | None]:
    """Return :func:`forms.resolved` with kernels if they can be used, otherwise the reason in one line.

    Kernels take the place of sparse products on a GPU, and of top-k before dense products on a TPU. Each is compared
    with its plain form on the device first, which takes seconds. Raise InputError if config.sae.products names a form
    with kernels and they cannot be used.
    """
    wanted, sae = sae.products, forms.resolved(sae, latents, mesh)
    device = mesh.local_devices[0]
    form = WITH_KERNELS.get((device.platform, sae.products)) if wanted == "auto" else wanted
    if form not in WITH_KERNELS.values():
        return sae, None
    reasons = _reasons_of_threshold if form == "threshold" else _reasons
    reason = next(filter(None, reasons(sae, latents, d, mesh)), None)
    if reason is None:
        return dataclasses.replace(sae, products=form), None
    if wanted == form:
        raise InputError(f"config.sae.products is {form}; {reason}; set it to auto")
    return sae, f"products without kernels: {reason}"


def _reasons(sae: SaeConfig, _: int, d: int, mesh: jax.sharding.Mesh) -> Iterator[str | None]:
    """Yield why the kernels for a GPU cannot be used. The one for decoding is used where its shapes fit."""
    device, slots = mesh.local_devices[0], module.slots(sae)
    kernels = ["segment_sum", "optimizer_rows"]
    kernels += ["decode_error"] if supports("decode_error", d, slots) else []
    if sae.matmul_dtype != "bfloat16" or sae.architecture not in ("topk", "batch_topk"):
        yield obstacle(kernels[0], device, d, slots)
        unfit = f"config.sae.matmul_dtype is {sae.matmul_dtype} and architecture {sae.architecture}"
        yield f"{unfit}; kernels need bfloat16 and topk"
    for check in (obstacle, disagreement):
        yield from (check(kernel, device, d, slots) for kernel in kernels)


def _reasons_of_threshold(sae: SaeConfig, latents: int, _: int, mesh: jax.sharding.Mesh) -> Iterator[str | None]:
    """Yield why the kernel for a TPU cannot be used."""
    device, devices = mesh.local_devices[0], mesh.shape["feature"]
    yield obstacle("threshold", device, latents, sae.k)
    if sae.architecture != "topk":
        yield f"config.sae.architecture is {sae.architecture}; threshold needs topk"
    if devices > 1:
        yield f"{devices} devices split the latents; threshold needs all of a row on one device"
    yield disagreement("threshold", device, latents, sae.k)


def obstacle(kernel: str, device: typing.Any, width: int, slots: int) -> str | None:
    """Return why a kernel cannot run on ``device`` in one line, or None if nothing known speaks against it.

    ``kernel`` is one of KERNELS. ``width`` is the number of columns of the kernel's matrices: D, and F for threshold.
    ``slots`` is K.
    """
    platform = "tpu" if kernel == "threshold" else "gpu"
    if device.platform != platform:
        return f"{kernel} runs on a {platform.upper()}; the device is a {device.platform.upper()}"
    if jax.__version_info__ < OLDEST_JAX[platform]:
        oldest = ".".join(map(str, OLDEST_JAX[platform]))
        return f"{kernel} needs jax {oldest} or later; {jax.__version__} is installed"
    capability = getattr(device, "compute_capability", None)
    if platform == "gpu" and capability != CAPABILITY:
        return f"{kernel} needs a GPU of compute capability {CAPABILITY}; {device.device_kind} has {capability}"
    if not supports(kernel, width, slots):
        return f"{kernel} does not handle rows of {width} columns with {slots} slots"
    return None


def supports(kernel: str, width: int, slots: int) -> bool:
    """Return whether the Pallas form of a kernel can handle these shapes."""
    if kernel == "decode_error":
        return decode_error.supports(width, slots)
    module = {"segment_sum": segment_sum, "optimizer_rows": optimizer_rows, "threshold": threshold}[kernel]
    return module.supports(width)


def disagreement(kernel: str, device: typing.Any, width: int, slots: int, interpret: bool = False) -> str | None:
    """Run a kernel and its plain form on small random arrays on ``device`` and return the difference in one line.

    Return None if both agree and if a second run returns the same bits. A driver or a compiler that breaks the
    kernel is found here, before any training step. ``width`` and ``slots`` are those of the run, because
    they choose what is compiled. It takes seconds. With ``interpret`` it takes place on a CPU.
    """
    with jax.default_device(device):
        plain, pallas, arrays = _example(kernel, width, slots, interpret)
        expected = jax.jit(plain)(*arrays)
        try:
            compiled = jax.jit(pallas)
            found, again = (jax.block_until_ready(compiled(*arrays)) for _ in range(2))
        except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
            first_line = str(error).strip().partition("\n")[0]
            return f"{kernel} fails on {device.device_kind}: {first_line}"
    for name, a, b, c in zip(expected._fields, expected, found, again, strict=True):
        a, b, c = (jnp.asarray(array, jnp.float32) for array in (a, b, c))
        if not bool(jnp.array_equal(b, c)):
            return f"{kernel} returns other bits in a second run on {device.device_kind}: {name}"
        # bfloat16 has 8 bits, and sums of hundreds of float32 numbers differ by their order.
        tolerance = 2.0**-7 if name.startswith("rounded") else 1e-5
        difference = float(jnp.abs(a - b).max() / jnp.maximum(jnp.abs(a).max(), 1e-30))
        if not difference <= tolerance:
            return f"{kernel} differs from its plain form on {device.device_kind}: {name} by {difference:.1e}"
    return None


class _Code(typing.NamedTuple):
    z_BF: jax.Array


def _example(kernel: str, width: int, slots: int, interpret: bool) -> tuple[Form, Form, tuple[jax.Array, ...]]:
    """Return the plain form and the Pallas form as functions of arrays, and random arrays."""
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape)

    if kernel == "threshold":
        pre_BF = normal(2 * threshold.ROWS, width)
        pre_BF = pre_BF.at[0].set(jnp.round(pre_BF[0]))  # ties
        k = jnp.int32(slots)

        def codes(low_and_last_B: tuple[jax.Array, jax.Array], pre_BF: jax.Array) -> _Code:
            return _Code(topk.kept(pre_BF, *low_and_last_B))

        return (
            lambda pre_BF, k: codes(threshold.xla(pre_BF, k), pre_BF),
            lambda pre_BF, k: codes(threshold.pallas(pre_BF, k, interpret), pre_BF),
            (pre_BF, k),
        )
    if kernel == "optimizer_rows":
        W_FD = initial.unit_rows(normal(LATENTS, width))
        grad_FD = normal(LATENTS, width)
        arrays = (W_FD, normal(LATENTS, width), jnp.square(normal(LATENTS, width)) + 0.1, grad_FD)
        numbers = (jnp.float32(0.5), jnp.float32(1e-2), jnp.int32(3))
        adam = optimizer_rows.Adam()
        return (
            functools.partial(optimizer_rows.xla, adam=adam),
            functools.partial(optimizer_rows.pallas, adam=adam, interpret=interpret),
            (*arrays, (grad_FD * W_FD).sum(1), *numbers),
        )
    indices_BK = jax.random.randint(next(keys), (ROWS, slots), 0, LATENTS).at[:, 0].set(1)
    values_BK = jnp.abs(normal(ROWS, slots))
    rows_BD = normal(ROWS, width)
    matrix_FD = normal(LATENTS, width)
    if kernel == "segment_sum":
        return (
            lambda values, indices, rows, W: segment_sum.xla(values, indices, rows, LATENTS, W),
            lambda values, indices, rows, W: segment_sum.pallas(values, indices, rows, LATENTS, W, interpret=interpret),
            (values_BK, indices_BK, rows_BD.astype(jnp.bfloat16), matrix_FD),
        )
    assert kernel == "decode_error", kernel
    return (
        decode_error.xla,
        functools.partial(decode_error.pallas, interpret=interpret),
        (values_BK, indices_BK, matrix_FD.astype(jnp.bfloat16), rows_BD, normal(width)),
    )
