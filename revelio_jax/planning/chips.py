"""Chips that :mod:`revelio_jax.plan` can plan for without the hardware: their published rates and their slices."""

import dataclasses
import math

from revelio_jax.errors import InputError

GIB = 2**30
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
NODES = ("1", "2", "4", "8", "16", "32", "64", "128", "256")  # GPUs, up to 8 in a node


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published rates of a chip, and the available slices, smallest first. Bytes and operations are per second."""

    platform: str  # of JAX: tpu or cuda
    hbm: float  # bytes that XLA may use, less than the chip has
    bytes_s: float  # of HBM
    flops_s: float  # products of bfloat16, without sparsity
    flops32_s: float  # products of float32 in JAX's default precision: bfloat16 on TPUs, TF32 on GPUs
    sent_s: float  # to other chips of the node or slice, one way
    slices: tuple[str, ...]
    clock: float | None = None  # Hz: flops_s divided by the operations per cycle of the matrix units
    node: int | None = None  # chips that sent_s connects; None: the whole slice
    network_s: float = math.inf  # to chips of other nodes, one way
    host_s: float | None = None  # from the host's memory; None: not published

    def peak(self, matmul_dtype: str) -> float:
        """Return the operations per second of products with inputs of ``matmul_dtype``."""
        return self.flops_s if matmul_dtype == "bfloat16" else self.flops32_s

    def link(self, chips: int, stride: int) -> float:
        """Return the bytes per second that a chip can send in a collective over every ``stride``-th chip.

        Rings of a group with several chips in a node share their network cards.
        """
        if self.node is None or chips * stride <= self.node:
            return self.sent_s
        return min(self.sent_s, max(1, self.node // stride) * self.network_s)


# TPU: cloud.google.com/tpu/docs/{v5e,v5p,v6e}; hbm from libtpu 0.0.42's out-of-memory message.
# clock: 4 x 128 x 128 multipliers (v5e), 8 x 128 x 128 (v5p), 4 x 256 x 256 (v6e), 2 operations each.
# GPU: NVIDIA's datasheets of H100 SXM, H200 SXM and DGX B200, half of the values that are given "with sparsity".
# NVLink 4 has 900 GB/s and NVLink 5 1,800 GB/s in both directions together, and PCIe 5 x16 has 64 GB/s one way. A node
# has one 400 Gb/s InfiniBand card per GPU. hbm is 92 % of the bytes that drivers report; the rest is for CUDA and
# NCCL, which is an assumption.
CHIPS = {
    "v5e": Chip("tpu", 15.75 * GIB, 819e9, 197e12, 197e12, 200e9, FLAT, clock=1.50e9),
    "v5p": Chip("tpu", 95.74 * GIB, 2765e9, 459e12, 459e12, 600e9, CUBE, clock=1.75e9),
    "v6e": Chip("tpu", 31.25 * GIB, 1640e9, 918e12, 918e12, 400e9, FLAT, clock=1.75e9),
    "h100": Chip("cuda", 0.92 * 84.9e9, 3350e9, 989e12, 495e12, 450e9, NODES, node=8, network_s=50e9, host_s=64e9),
    "h200": Chip("cuda", 0.92 * 151.4e9, 4800e9, 989e12, 495e12, 450e9, NODES, node=8, network_s=50e9, host_s=64e9),
    "b200": Chip("cuda", 0.92 * 191.5e9, 8000e9, 2250e12, 1125e12, 900e9, NODES, node=8, network_s=50e9, host_s=64e9),
}


def parse_topology(topology: str) -> tuple[str, int]:
    """Return the kind of chip and the number of chips. Raise InputError if the topology is unknown."""
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS or shape not in CHIPS[kind].slices:
        known = f"{kind}:" + f", {kind}:".join(CHIPS[kind].slices) if kind in CHIPS else ""
        kinds = "; ".join(f"{kind}:{' '.join(chip.slices)}" for kind, chip in CHIPS.items())
        raise InputError(f"--topology is {topology!r}; allowed: {known or kinds}")
    return kind, math.prod(map(int, shape.split("x")))
