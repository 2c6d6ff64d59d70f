"""A model of the train step: bytes and seconds of one chip, from counts of operations and published rates.

It compiles nothing, so it ranks all meshes of a slice at once, and it is the only time for GPUs, for which XLA
estimates none. Letters: B rows of a batch, D width, F latents, K slots of a row. On a mesh of data x feature chips a
chip has b = B / data rows, and l = F / feature latents.

    encoder      the product with W_enc: b rows
    products     decode, dots and two weight gradients. dense: whole products that also read or write a matrix [b, l],
                 gradients are summed over the data axis; sparse: decode and dots read K rows of D for a row, gradients
                 are whole products with the B rows of all chips; atomic: gradients read and write K rows for a row
    top-k        reads the pre-activations [b, l] and its candidates; dense also writes the code as a matrix
    optimizer    reads and writes the state once, and takes GRADIENT_BYTES per parameter for passes over gradients
    links        the collectives, in rings
    input        rows from the host, while the step before runs

A product takes its operations or its bytes, whichever is longer. Terms follow each other, except the input.
"""

import dataclasses
import functools
import math
from collections import Counter

import jax

from revelio_jax.config import SaeConfig
from revelio_jax.planning.chips import Chip
from revelio_jax.planning.hlo import Collective
from revelio_jax.planning.work import StepWork
from revelio_jax.sae import forms, topk
from revelio_jax.sae.module import slots
from revelio_jax.sae.sharding import AXES
from revelio_jax.training.step import State, abstract_state

# Shares of the published rates that large products and long reads reach. Assumed, not measured.
PRODUCT_SHARE, BYTES_SHARE = 0.8, 0.9
# Passes over float32 gradients, on average over both matrices: written, read for the norm and for the update; rows of
# the decoder are read with them, and once more to scale them to norm 1.
GRADIENT_BYTES = 18
FLOAT = 4  # bytes of a float32 or an int32


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The model's seconds and bytes of one chip for a step on one mesh (data, feature)."""

    mesh: tuple[int, int]
    terms: dict[str, float]  # seconds, one after the other
    dead_s: float  # more seconds if many latents are dead
    input_s: float  # seconds in which rows come from the host, while the step before runs
    memory: dict[str, float]  # bytes
    roofs: dict[str, float]  # seconds below which no program can be, at published rates
    collectives: Counter[Collective]

    @property
    def seconds(self) -> float:
        """Seconds of a step without dead latents."""
        return max(sum(self.terms.values()), self.input_s)

    @property
    def seconds_dead(self) -> float:
        """Seconds of a step with many dead latents."""
        return max(sum(self.terms.values()) + self.dead_s, self.input_s)

    @property
    def bytes(self) -> float:
        """Bytes of memory."""
        return sum(self.memory.values())


def estimate(work: StepWork, mesh: tuple[int, int], chip: Chip) -> Estimate:
    """Return the model's estimate for one mesh, which must divide the batch and the latents."""
    return _Step(work, *mesh, chip).estimate()


def state_bytes(work: StepWork, sae: SaeConfig, mesh: tuple[int, int]) -> int:
    """Return the bytes of a run's state on one chip. ``sae`` comes from ``forms.on_platform``."""
    leaves = jax.tree.leaves(_state(work, sae, mesh))
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


@functools.lru_cache(maxsize=1024)
def _state(work: StepWork, sae: SaeConfig, mesh: tuple[int, int]) -> State:
    abstract_mesh = jax.sharding.AbstractMesh(mesh, AXES)
    # The shardings of an abstract mesh give the shape of a shard without devices.
    return abstract_state(work.latents, work.d, sae, work.config.train, abstract_mesh)  # pyright: ignore[reportArgumentType]


class _Step:
    """The sizes of a step on one chip."""

    def __init__(self, work: StepWork, data: int, feature: int, chip: Chip):
        sae = forms.on_platform(work.config.sae, work.latents // feature, chip.platform)
        self.work, self.data, self.feature, self.chip, self.sae = work, data, feature, chip, sae
        self.d, self.batch = work.d, work.config.train.batch_size
        self.rows, self.latents = self.batch / data, work.latents / feature
        self.is_sparse_code = sae.architecture in ("topk", "batch_topk")
        self.has_slots = self.is_sparse_code and not forms.is_dense(sae)
        self.slots = min(slots(sae), self.latents)
        # Reconstructions: one for each prefix, and one with 4 k latents
        self.codes = max(1, len(sae.prefixes)) + bool(sae.multi_topk)
        self.state = state_bytes(work, sae, (data, feature))
        self.params = 2 * self.latents * self.d

    def estimate(self) -> Estimate:
        collectives = self.collectives()
        sent_s = sum(self.sent_s(collective, stride) for collective, stride in collectives)
        terms = {
            "encoder": self.product(self.rows),
            "products": self.products(),
            "top-k": self.top_k(self.rows, self.slots),
            "optimizer": self.moved(2 * self.state + GRADIENT_BYTES * self.params),
            "links": sent_s,
        }
        host_s = self.chip.host_s or math.inf
        input_bytes = FLOAT * self.batch * self.d / (self.data * self.feature)
        k = self.sae.k / self.feature if self.is_sparse_code else self.latents
        roofs = {
            "compute": 2 * self.rows * self.d * (self.latents + 4 * k) / self.chip.peak(self.sae.matmul_dtype),
            "HBM": (2 * self.state + input_bytes) / self.chip.bytes_s,
            "links": sent_s,
            "input": input_bytes / host_s,
        }
        return Estimate(
            (self.data, self.feature),
            terms,
            self.dead_s(),
            input_bytes / host_s,
            self.memory(),
            roofs,
            Counter(collective for collective, _ in collectives),
        )

    def moved(self, bytes: float) -> float:
        """Return the seconds in which bytes are read or written."""
        return bytes / (BYTES_SHARE * self.chip.bytes_s)

    def product(self, rows: float) -> float:
        """Return the seconds of a product of rows [rows, D] with all latents of the chip."""
        operations = 2 * rows * self.d * self.latents
        bytes = FLOAT * (self.params / 2 + rows * (self.latents + self.d))
        return max(operations / (PRODUCT_SHARE * self.chip.peak(self.sae.matmul_dtype)), self.moved(bytes))

    def rows_moved(self, rows: float, bytes: int) -> float:
        """Return the seconds in which, for each of ``rows`` rows, a row of a weight matrix moves for each slot."""
        return self.moved(rows * self.slots * self.d * bytes)

    def products(self) -> float:
        """Return the seconds of the other products: decode, dots and both weight gradients."""
        gradients = self.codes + 1  # one of W_dec for each reconstruction, one of W_enc
        if not self.has_slots:
            return (2 * self.codes + gradients) * self.product(self.rows)
        # Rows are read in the dtype of products; gradients are float32.
        read_s = self.rows_moved(2 * self.codes * self.rows, 2 if self.sae.matmul_dtype == "bfloat16" else FLOAT)
        if self.sae.products == "atomic":
            return read_s + self.rows_moved(2 * gradients * self.batch, FLOAT)
        return read_s + gradients * self.product(self.batch)

    def top_k(self, rows: float, k: float) -> float:
        """Return the seconds in which top-k reads the pre-activations, its groups and the values of other chips."""
        if not self.is_sparse_code:
            return 0.0
        groups = 2 * self.latents / topk.GROUP + k * topk.GROUP
        merged = 2 * k * self.feature if self.feature > 1 else 0
        matrix = 0 if self.has_slots else 2 * self.latents  # read again, written
        return self.moved(FLOAT * rows * (self.latents + groups + merged + matrix))

    def dead_s(self) -> float:
        """Return the seconds of AuxK's most expensive branch: one more code with k_aux slots, by whole products."""
        if not self.sae.k_aux:
            return 0.0
        k = min(self.sae.k_aux, self.latents)
        rows = self.rows if self.is_sparse_code and not self.has_slots else self.batch
        if self.feature == 1:
            return 5 * self.product(rows) + self.moved(FLOAT * rows * (3 * self.latents + k * topk.GROUP))
        sent_s = self.sent_s(Collective("all-reduce", round(FLOAT * rows * self.d), self.feature), 1)
        # Chips count the values above a guess, once for each bit of the k-th largest.
        return 5 * self.product(rows) + self.moved(FLOAT * rows * self.latents * topk.COUNTS) + sent_s

    def collectives(self) -> list[tuple[Collective, int]]:
        """Return the large collectives, and the distance of neighbors in their rings."""
        rows = round(FLOAT * self.rows * self.d)
        found: list[tuple[Collective, int]] = []
        if self.feature > 1:
            # Each row comes from the host to one chip. Reconstructions are sums over the latents of all chips.
            found += [(Collective("all-gather", rows, self.feature), 1)]
            found += [(Collective("all-reduce", rows, self.feature), 1)] * (self.codes if self.is_sparse_code else 2)
            if self.is_sparse_code:
                values = round(FLOAT * self.rows * self.slots * self.feature)
                found += [(Collective("all-gather", values, self.feature), 1)]
        if self.data > 1 and self.has_slots:
            # Rows, errors for AuxK, and gradients of reconstructions; indices, gradients of values, and values.
            rows_of_all, codes_of_all = FLOAT * self.batch * self.d, round(FLOAT * self.batch * self.slots)
            arrays = 1 + bool(self.sae.k_aux) + self.codes
            found += [(Collective("all-gather", rows_of_all, self.data), self.feature)] * arrays
            found += [(Collective("all-gather", codes_of_all, self.data), self.feature)] * (2 + self.codes)
        elif self.data > 1:
            found += [(Collective("all-reduce", round(FLOAT * self.params), self.data), self.feature)]
        return found

    def sent_s(self, collective: Collective, stride: int) -> float:
        return collective.sent / self.chip.link(collective.chips, stride)

    def memory(self) -> dict[str, float]:
        """Return the bytes of the state, of the batch, and of temporaries that exist together."""
        width = min(self.latents, self.sae.encode_chunk or self.latents)
        codes = width * self.rows * (2 if self.is_sparse_code and not self.has_slots else 1)
        rows = self.batch if self.has_slots else self.rows
        parts = {
            "arguments": self.state + FLOAT * self.batch * self.d / (self.data * self.feature),
            "gradients": FLOAT * self.params,
            "codes": FLOAT * codes,
            "rows": 4 * FLOAT * rows * self.d,
        }
        # The candidates of all chips are sorted, and then exist twice.
        parts["codes"] += 2 * FLOAT * self.rows * self.slots * self.feature if self.is_sparse_code else 0
        return parts | ({"AuxK": 2 * FLOAT * rows * (width + self.d)} if self.sae.k_aux else {})
