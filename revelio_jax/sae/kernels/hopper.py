"""Launch of Pallas kernels on NVIDIA Hopper, in Mosaic GPU.

The kernels read and write global memory directly. A block has 128 threads, which share a tile of columns, and gets
its bandwidth from the many blocks that fit on a multiprocessor. They use no atomics, so two runs give the same bits.
Pallas is imported at the first launch, because jax releases before the tested one have another interface.
"""

import importlib
import typing
from collections.abc import Callable

import jax
from jax.experimental import pallas as pl

THREADS = 128  # of a warpgroup, which is one thread of Pallas


def column_tile(width: int, most: int, per_thread: int = 1) -> int:
    """Return the tile of at most ``most`` columns that divides ``width``; 0 if there is none.

    Each thread gets a multiple of ``per_thread`` columns. Tiles with wide accesses come before large tiles.
    """
    step = per_thread * THREADS
    tiles = (tile for tile in range(step, min(width, most) + 1, step) if width % tile == 0)
    return max(tiles, key=lambda tile: (_vector(tile), tile), default=0)


def block(tiles: int) -> tuple[jax.Array, jax.Array]:
    """Return the row and the tile of columns of this block, if each row of the grid is split into ``tiles``.

    The grid has one axis, because CUDA allows at most 65,535 blocks along the others.
    """
    number = jax.lax.axis_index("block")
    return jax.lax.div(number, tiles), jax.lax.rem(number, tiles)


def columns(part: jax.Array | int, tile: int) -> typing.Any:
    """Return the columns of a tile as an index."""
    return pl.ds(part * tile, tile)


def in_tile(x: jax.Array) -> jax.Array:
    """Spread a tile over the threads, so that each reads neighbors and the warp reads a contiguous piece."""
    mosaic = _mosaic()
    size = _vector(x.size)
    tiling = mosaic.Tiling(((THREADS * size,), (THREADS // 4 * size,), (size,)))  # warps, threads of a warp, neighbors
    return mosaic.layout_cast(x, mosaic.Layout.TILED(tiling, warp_dims=(-3,), lane_dims=(-2,), vector_dim=-1))


def write(ref: typing.Any, row: jax.Array, columns: typing.Any, tile_C: jax.Array) -> None:
    """Store a tile with one access for all neighbors of a thread, which ``ref[row, columns] = ...`` does not."""
    _mosaic().store(ref.at[row, columns], tile_C, optimized=False)


def launch(body: Callable[..., None], out_type: typing.Any, blocks: int, interpret: bool) -> Callable[..., typing.Any]:
    """Return the kernel as a function of arrays, or of references that it updates in place.

    ``body`` gets references to the operands and then to the outputs, and finds its part with :func:`block`.
    ``interpret`` runs the kernel on a CPU, slowly.
    """
    mosaic = _mosaic()
    kernel = mosaic.kernel(
        body,
        out_type=out_type,
        grid=(blocks,),
        grid_names=("block",),
        # A barrier around every store is not needed: a thread reads no element that another one writes.
        compiler_params=mosaic.CompilerParams(unsafe_no_auto_barriers=True),
        interpret=mosaic.InterpretGPUParams() if interpret else None,
    )

    def call(*operands: typing.Any) -> typing.Any:
        # Inside shard_map, mosaic.kernel forgets over which axes its operands vary.
        axes = {axis for operand in operands for axis in _varying(operand)}
        return jax.tree.map(lambda out: jax.lax.pcast(out, tuple(sorted(axes)), to="varying"), kernel(*operands))

    return call


def _varying(operand: typing.Any) -> frozenset[str]:
    array_type: typing.Any = jax.typeof(operand)  # its attribute has another name in older releases
    return array_type.manual_axis_type.varying


def _vector(tile: int) -> int:
    """Return how many neighbors a thread reads at once: at most four, which are 16 bytes of float32."""
    return next(size for size in (4, 2, 1) if tile % (size * THREADS) == 0)


def _mosaic() -> typing.Any:
    return importlib.import_module("jax.experimental.pallas.mosaic_gpu")
