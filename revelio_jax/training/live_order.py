"""The order of the rows of a live run, whose shards are extracted while it trains.

Some shards are held out. Each epoch permutes the other shards and cuts them into blocks. A block is shuffled as the
loader shuffles a whole store: its chunks are permuted and consecutive chunks form groups, whose rows are permuted.
So a step needs the shards of its own block and, near its end, of the next one. If all shards fit on the disk at once,
an epoch is one block.

The order is a pure function of the seed and of the plan of the store.
"""

import bisect
import dataclasses
import fractions
import functools
import itertools
import typing
from collections.abc import Sequence

import numpy as np

from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.store.json_files import Plan
from revelio_jax.training import loader
from revelio_jax.training.loader import Chunk, ChunkStream, Order
from revelio_jax.training.mixture import Mixture


class Split(typing.NamedTuple):
    """The shards of a live run. ``block`` is the number of training shards that are shuffled together."""

    held_out: list[int]
    training: list[int]
    block: int


@dataclasses.dataclass(frozen=True, eq=False)
class LiveStream(ChunkStream):
    """The endless sequence of the training rows. ``shards`` maps each training shard to its chunks."""

    shards: dict[int, tuple[Chunk, ...]]
    block: int

    @functools.cached_property
    def blocks(self) -> typing.Callable[[int], tuple[list[list[int]], list[int]]]:
        """A function from an epoch to the shards of each block and the row at which each block ends."""
        return functools.lru_cache(maxsize=2)(self._blocks)

    def _blocks(self, epoch: int) -> tuple[list[list[int]], list[int]]:
        numbers = list(self.shards)
        order = loader.random_generator(self.seed, loader.LIVE_SHARDS, epoch).permutation(len(numbers))
        parts = np.array_split(order, -(-len(numbers) // self.block))  # of nearly equal size
        blocks = [[numbers[i] for i in part] for part in parts]
        rows = (sum(loader.length(self.shards[shard]) for shard in block) for block in blocks)
        return blocks, list(itertools.accumulate(rows))

    def _groups(self, epoch: int) -> tuple[list[list[Chunk]], list[int]]:
        random, groups = loader.random_generator(self.seed, loader.LIVE_CHUNKS, epoch), list[list[Chunk]]()
        for block in self.blocks(epoch)[0]:
            chunks = [chunk for shard in block for chunk in self.shards[shard]]
            chunks = [chunks[i] for i in random.permutation(len(chunks))]
            groups += [chunks[i : i + self.group_chunks] for i in range(0, len(chunks), self.group_chunks)]
        return groups, list(itertools.accumulate(loader.length(group) for group in groups))

    def needed(self, row: int, end: int) -> list[int]:
        """Return the shards of the block of ``row`` and of the next block, if they have rows before ``end``."""
        if row >= end:
            return []
        epoch, start = divmod(row, self.rows)
        blocks, ends = self.blocks(epoch)
        i = bisect.bisect_right(ends, start)
        following = blocks[i + 1] if i + 1 < len(blocks) else self.blocks(epoch + 1)[0][0]
        is_last = end <= epoch * self.rows + ends[i]
        return list(dict.fromkeys([*blocks[i], *([] if is_last else following)]))

    @functools.cached_property
    def fewest_rows(self) -> int:
        """A lower bound of the rows in a block."""
        lengths = sorted(map(loader.length, self.shards.values()))
        return sum(lengths[: len(lengths) // -(-len(lengths) // self.block)])


def split(plan: Plan, site: str, config: Config) -> Split:
    """Choose the held-out shards and the number of shards in a block, so that at most live_shards are on the disk.

    Raise InputError if no shard is left for training.
    """
    shards = [i for i, rows in enumerate(plan["sites"][site]["expected_rows"]) if rows]
    most = config.data.live_shards
    count = min(max(1, round(config.data.held_out * len(shards))), most // 3)
    if count >= len(shards):
        raise InputError(
            f"config.data.live needs at least 2 shards with rows, one of them held out, but {site} has {len(shards)}; "
            "lower config.extract.shard_samples"
        )
    chosen = loader.random_generator(config.train.seed, loader.LIVE_HELD_OUT).permutation(len(shards))[:count]
    held_out = sorted(shards[i] for i in chosen)
    training = sorted(set(shards) - set(held_out))
    room = most - count
    return Split(held_out, training, len(training) if len(training) <= room else room // 2)


def make_order(mixture: Mixture, shards: Split, config: Config) -> Order:
    """Return the order of the rows of ``mixture``, whose only site has the chunks of all planned shards.

    Raise InputError if a batch needs more rows than there are.
    """
    (site,) = mixture.sites
    chunks: dict[int, list[Chunk]] = {}
    for start, stop in site.chunks:
        chunks.setdefault(start // site.shard_rows, []).append(Chunk(0, start, stop))
    training = {shard: tuple(chunks[shard]) for shard in shards.training}
    stream = LiveStream(
        config.train.seed, (0, 0), tuple(_join(training.values())), config.data.buffer_chunks, training, shards.block
    )
    if stream.rows < config.train.batch_size:
        raise InputError(
            f"config.train.batch_size is {config.train.batch_size}, but site {site.name} has {stream.rows} rows to "
            "train on"
        )
    held_out = tuple(_join(chunks[shard] for shard in shards.held_out))
    return Order(config.train.seed, config.train.batch_size, (fractions.Fraction(1),), ((stream,),), held_out)


def stream_of(order: Order) -> LiveStream:
    """Return the only stream of the order of a live run."""
    ((stream,),) = order.streams
    assert isinstance(stream, LiveStream)
    return stream


def check_blocks(order: Order, config: Config, dispatch_steps: int) -> None:
    """Raise InputError if steps need rows of more than two blocks at once.

    A dispatch starts before the metrics of the previous one are read, so the rows of two dispatches are in use.
    """
    stream = stream_of(order)
    if len(stream.shards) <= stream.block:
        return
    advice = "increase config.data.live_shards or config.extract.shard_samples"
    needed = 2 * dispatch_steps * order.batch_size
    if stream.fewest_rows < needed:
        raise InputError(
            f"config.data.live_shards is {config.data.live_shards}, which gives blocks of {stream.fewest_rows:,} rows; "
            f"two dispatches need {needed:,}; {advice}, or lower config.train.batch_size or steps_per_dispatch"
        )
    first = min(config.sae.b_dec_init_rows, order.rows)
    if stream.blocks(0)[1][1] < -(-first // order.batch_size) * order.batch_size:
        raise InputError(
            f"config.sae.b_dec_init_rows is {config.sae.b_dec_init_rows}, but the first two blocks of shards have "
            f"{stream.blocks(0)[1][1]:,} rows; lower it, or {advice}"
        )


def _join(parts: typing.Iterable[Sequence[Chunk]]) -> list[Chunk]:
    return [chunk for part in parts for chunk in part]
