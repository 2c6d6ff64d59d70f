"""Devices and shapes that kernels support, and the check that refuses a kernel with wrong results."""

import types

import jax
import jax.numpy as jnp
import pytest

from revelio_jax.config import SaeConfig
from revelio_jax.errors import InputError
from revelio_jax.sae.kernels import choice, decode_error, optimizer_rows, segment_sum, threshold

H100 = types.SimpleNamespace(platform="gpu", compute_capability="9.0", device_kind="NVIDIA H100 80GB HBM3")
A100 = types.SimpleNamespace(platform="gpu", compute_capability="8.0", device_kind="NVIDIA A100-SXM4-80GB")
V5E = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
GPU_KERNELS = ("segment_sum", "optimizer_rows", "decode_error")


def set_jax(monkeypatch, *version):
    monkeypatch.setattr(jax, "__version_info__", version)
    monkeypatch.setattr(jax, "__version__", ".".join(map(str, version)))


@pytest.mark.parametrize("kernel", GPU_KERNELS)
def test_gpu_kernels_need_hopper_a_new_jax_and_a_width(kernel, monkeypatch):
    set_jax(monkeypatch, 0, 12, 0)
    assert choice.obstacle(kernel, H100, 4096, 32) is None
    assert "compute capability 9.0" in choice.obstacle(kernel, A100, 4096, 32)
    assert "runs on a GPU" in choice.obstacle(kernel, V5E, 4096, 32)
    assert "100 columns" in choice.obstacle(kernel, H100, 100, 32)
    set_jax(monkeypatch, 0, 11, 2)
    assert choice.obstacle(kernel, H100, 4096, 32) == f"{kernel} needs jax 0.12.0 or later; 0.11.2 is installed"


def test_the_threshold_needs_a_tpu(monkeypatch):
    set_jax(monkeypatch, 0, 10, 2)
    assert choice.obstacle("threshold", V5E, 65536, 32) is None
    assert "runs on a TPU" in choice.obstacle("threshold", H100, 65536, 32)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", choice.KERNELS)
def test_the_self_check_passes_for_interpreted_kernels(kernel, monkeypatch):
    if kernel in GPU_KERNELS and jax.__version_info__ < (0, 12):
        pytest.skip("the GPU kernels need jax 0.12")
    monkeypatch.setattr(choice, "LATENTS", 4)
    monkeypatch.setattr(choice, "ROWS", 6)
    assert choice.disagreement(kernel, jax.devices()[0], 256, 2, interpret=True) is None


def test_the_self_check_finds_wrong_and_unstable_results(monkeypatch):
    device = jax.devices()[0]

    def plain_gradient(*arrays, interpret, change=lambda grad: grad):
        gradient = segment_sum.xla(*arrays)
        return gradient._replace(grad_FD=change(gradient.grad_FD))

    monkeypatch.setattr(segment_sum, "pallas", plain_gradient)
    assert choice.disagreement("segment_sum", device, 128, 2) is None

    monkeypatch.setattr(
        segment_sum,
        "pallas",
        lambda *arrays, interpret: plain_gradient(*arrays, interpret=0, change=lambda g: g.at[3, 5].add(0.1)),
    )
    assert "differs from its plain form" in choice.disagreement("segment_sum", device, 128, 2)
    monkeypatch.setattr(
        segment_sum,
        "pallas",
        lambda *arrays, interpret: plain_gradient(*arrays, interpret=0, change=lambda g: g * jnp.nan),
    )
    assert choice.disagreement("segment_sum", device, 128, 2) is not None

    calls = []

    def unstable(grad):
        return grad + jax.pure_callback(
            lambda: calls.append(1) or jnp.float32(1e-6 * len(calls)), jax.ShapeDtypeStruct((), jnp.float32)
        )

    monkeypatch.setattr(
        segment_sum, "pallas", lambda *arrays, interpret: plain_gradient(*arrays, interpret=0, change=unstable)
    )
    assert "other bits" in choice.disagreement("segment_sum", device, 128, 2)


@pytest.mark.parametrize("module", [decode_error, optimizer_rows, threshold])
def test_the_self_check_reports_a_kernel_that_does_not_compile(module, monkeypatch):
    def fail(*arrays, **options):
        raise NotImplementedError("no such instruction\nand more")

    monkeypatch.setattr(module, "pallas", fail)
    kernel = module.__name__.rpartition(".")[2]
    line = choice.disagreement(kernel, jax.devices()[0], 256, 2)
    assert line.startswith(f"{kernel} fails on ")
    assert line.endswith("no such instruction")


def mesh_of(device, feature=1):
    """Return a stand-in for a mesh of devices, with the attributes that the choice reads."""
    devices = types.SimpleNamespace(flat=[device])
    return types.SimpleNamespace(devices=devices, local_devices=[device], shape={"data": 1, "feature": feature})


def test_large_dictionaries_on_a_gpu_use_kernels_that_agree(monkeypatch):
    set_jax(monkeypatch, 0, 12, 0)
    results = iter([None, None, None, "segment_sum differs"])
    monkeypatch.setattr(choice, "disagreement", lambda *_: next(results))
    sae = SaeConfig(k=32)
    found, reason = choice.with_kernels(sae, 65536, 4096, mesh_of(H100))
    assert (found.products, found.matmul_dtype, reason) == ("kernels", "bfloat16", None)
    found, reason = choice.with_kernels(sae, 65536, 4096, mesh_of(H100))
    assert (found.products, reason) == ("sparse", "products without kernels: segment_sum differs")
    found, reason = choice.with_kernels(sae, 65536, 4096, mesh_of(A100))
    assert found.products == "sparse"
    assert "compute capability 9.0" in reason


def test_one_tpu_uses_the_threshold_where_it_fits_and_agrees(monkeypatch):
    set_jax(monkeypatch, 0, 10, 2)
    results = iter([None, "threshold differs"])
    monkeypatch.setattr(choice, "disagreement", lambda *_: next(results))

    def chosen(latents=65536, feature=1, **fields):
        found, reason = choice.with_kernels(SaeConfig(**fields), latents, 4096, mesh_of(V5E, feature))
        return found.products, reason

    assert chosen() == ("threshold", None)
    assert chosen() == ("dense", "products without kernels: threshold differs")
    for reason, fields in {
        "threshold does not handle rows of 100 columns": {"latents": 100},
        "config.sae.architecture is batch_topk; threshold needs topk": {"architecture": "batch_topk"},
        "4 devices split the latents; threshold needs all": {"feature": 4},
    }.items():
        products, line = chosen(**fields)
        assert products == "dense"
        assert line.startswith(f"products without kernels: {reason}")
    with pytest.raises(InputError, match="products is threshold; 4 devices split the latents"):
        chosen(products="threshold", feature=4)


def test_other_devices_and_small_dictionaries_do_without_kernels():
    assert choice.with_kernels(SaeConfig(k=32), 4096, 4096, mesh_of(H100))[0].products == "dense"
    cpu = choice.with_kernels(SaeConfig(), 65536, 4096, mesh_of(jax.devices()[0]))
    assert (cpu[0].products, cpu[0].matmul_dtype, cpu[1]) == ("sparse", "float32", None)


def test_kernels_that_are_asked_for_but_cannot_be_used_are_an_error(monkeypatch):
    with pytest.raises(InputError, match="products is kernels; segment_sum runs on a GPU; the device is a CPU"):
        choice.with_kernels(SaeConfig(products="kernels"), 65536, 4096, mesh_of(jax.devices()[0]))
    set_jax(monkeypatch, 0, 12, 0)
    sae = SaeConfig(products="kernels", matmul_dtype="float32")
    with pytest.raises(InputError, match="matmul_dtype is float32 and architecture topk; kernels need bfloat16"):
        choice.with_kernels(sae, 65536, 4096, mesh_of(H100))
