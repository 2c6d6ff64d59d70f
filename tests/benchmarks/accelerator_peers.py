"""Measure steps of torch trainers on a GPU, for accelerator.py. Runs in the peers' venv.

    .venv-peers/bin/python tests/benchmarks/accelerator_peers.py D N K B DEADLINE [small]

sparsify runs its own training loop on one batch, as in in_peers.py: a step is what the loop does between two requests
for a batch. The dense step is what SAELens and dictionary_learning do, without AuxK: bfloat16 products by autocast, and
a fused Adam. Rows are on the GPU already.
"""

import functools
import importlib.metadata
import statistics
import time
import typing
from collections.abc import Callable

import torch
import torch.nn.functional as F
from accelerator_rows import ROUNDS, Report, Size, Skipped, milliseconds, start

WARM_UP = 3  # steps of sparsify that are not timed: biases, moments, Triton's compilation


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    gpu = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    report = start({"device": gpu, "torch": torch.__version__})
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # as sparsify does
    size, sparsify = report.size, f"sparsify {sparsify_version()}"
    forms: dict[str, Callable[[], dict]] = {
        f"{sparsify}, step": lambda: sparsify_step(size, device),
        "torch dense, step": lambda: queued(dense_step(size, device), device, size),
        "torch dense, step, compiled": lambda: compiled_step(report, device),
        "torch.topk, bfloat16": lambda: topk(size, device, torch.bfloat16),
        "torch.topk, float32": lambda: topk(size, device, torch.float32),
        f"{sparsify}, decode kernel": lambda: sparsify_kernel(size, device, backward=False),
        f"{sparsify}, kernel of the decoder's gradient": lambda: sparsify_kernel(size, device, backward=True),
    }
    for name, measure in forms.items():
        report.row("peers", name, functools.partial(on_gpu, measure, device, report.small))


def sparsify_version() -> str:
    try:
        return importlib.metadata.version("eai-sparsify")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def on_gpu(measure: Callable[[], dict], device: str, small: bool) -> dict:
    """Return the fields of a row and the peak memory of the GPU."""
    if device == "cpu" and not small:
        raise Skipped("torch sees no GPU")
    if device == "cpu":
        return measure()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    fields = measure()
    return fields | {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3)}


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def queued(function: Callable[[], typing.Any], device: str, size: Size | None = None) -> dict:
    """Return the fields of a function; with ``size`` also the rows per second."""

    def run(count: int) -> None:
        for _ in range(count):
            function()
        wait(device)

    ms = milliseconds(run)
    return {"ms": round(ms, 4)} | ({"rows_per_s": round(1000 * size.batch / ms)} if size else {})


def sparsify_step(size: Size, device: str) -> dict:
    try:
        import in_peers

        library = in_peers.sparsify(*size, device=device)
    except ImportError as error:
        raise Skipped(f"sparsify is not installed: {error}") from None
    x_BD, seconds = torch.randn(size.batch, size.d, device=device), []

    def batches():
        for _ in range(WARM_UP + 2 * ROUNDS):
            wait(device)
            began = time.perf_counter()
            yield x_BD
            wait(device)
            seconds.append(time.perf_counter() - began)

    library.fit(batches())
    ms = 1000 * statistics.median(seconds[WARM_UP:])
    return {"ms": round(ms, 4), "rows_per_s": round(1000 * size.batch / ms)}


def dense_step(size: Size, device: str, compiled: bool = False) -> Callable[[], None]:
    d, n, k, batch = size
    shape, parameter = (n, d), torch.nn.Parameter
    W_enc_FD = parameter(torch.randn(shape, device=device) / d**0.5)
    W_dec_FD = parameter(F.normalize(torch.randn(shape, device=device), dim=1))
    b_enc_F, b_dec_D = parameter(torch.zeros(n, device=device)), parameter(torch.zeros(d, device=device))
    params = [W_enc_FD, W_dec_FD, b_enc_F, b_dec_D]
    adam = torch.optim.Adam(params, lr=2e-4, fused=device == "cuda")
    x_BD = torch.randn(batch, d, device=device)

    def loss(x_BD):
        with torch.autocast(device, dtype=torch.bfloat16):
            pre_BF = F.relu(F.linear(x_BD - b_dec_D, W_enc_FD, b_enc_F))
            values_BK, indices_BK = pre_BF.topk(k, sorted=False)
            z_BF = torch.zeros_like(pre_BF).scatter_(1, indices_BK, values_BK)
            error_BD = F.linear(z_BF, W_dec_FD.T) + b_dec_D - x_BD
        return error_BD.float().pow(2).sum() / x_BD.pow(2).sum()

    loss = torch.compile(loss) if compiled else loss

    def step():
        loss(x_BD).backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        with torch.no_grad():
            W_dec_FD.grad -= (W_dec_FD.grad * W_dec_FD).sum(1, keepdim=True) * W_dec_FD
            adam.step()
            adam.zero_grad()
            W_dec_FD.div_(W_dec_FD.norm(dim=1, keepdim=True))

    return step


def compiled_step(report: Report, device: str) -> dict:
    if report.small:
        raise Skipped("compiling takes long")
    return queued(dense_step(report.size, device, compiled=True), device, report.size)


def topk(size: Size, device: str, dtype: torch.dtype) -> dict:
    shape = size.batch, size.d, size.n
    x_BD, W_FD = (torch.randn(rows, shape[1], device=device, dtype=torch.bfloat16) for rows in (shape[0], shape[2]))
    pre_BF = (x_BD @ W_FD.T).to(dtype)
    return queued(lambda: pre_BF.topk(size.k, sorted=False), device)


def sparsify_kernel(size: Size, device: str, backward: bool) -> dict:
    """Measure a Triton kernel of sparsify with random indices."""
    if device == "cpu":
        raise Skipped("Triton needs a GPU")
    try:
        from sparsify.xformers import embedding_bag_bw_rev_indices, embedding_bag_triton
    except ImportError as error:
        raise Skipped(f"sparsify is not installed: {error}") from None
    indices_BK = torch.randint(size.n, (size.batch, size.k), device=device)
    values_BK = torch.rand(size.batch, size.k, device=device)
    W_FD, grad_BD = (torch.randn(rows, size.d, device=device) for rows in (size.n, size.batch))
    if backward:
        return queued(lambda: embedding_bag_bw_rev_indices(indices_BK, W_FD, values_BK, grad_BD), device)
    return queued(lambda: embedding_bag_triton(indices_BK, W_FD, values_BK), device)


if __name__ == "__main__":
    main()
