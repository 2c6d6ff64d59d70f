"""The table of ``--list_sites``: every hook point of a model, its shape, and the size of one sample's activations.

The table follows from the components' config files alone. No weights are read or downloaded.
"""

import typing

import torch

from revelio_jax.config import Config
from revelio_jax.pipelines import denoiser, dependence, hook_points, loading, text_to_image
from revelio_jax.pipelines.denoiser import ActivationShape
from revelio_jax.pipelines.families.base import LONGEST_PROMPT
from revelio_jax.pipelines.hooks import HookPoint
from revelio_jax.pipelines.loading import DTYPES
from revelio_jax.pipelines.source import PipelineSource, find

UNITS = ("B", "kB", "MB", "GB", "TB")


def table(config: Config) -> str:
    """Return a table with one line per hook point of config.model. Raise InputError for wrong fields.

    The columns are the name, the shape, the size of one sample at one timestep and at all timesteps, and whether
    config.extract.value=difference is possible. Hook points that no output of the pipeline depends on are marked.
    """
    extract = config.extract
    loading.quiet()
    source = find(config.model.id, config.model.revision, config.model.family)
    obstacle = text_to_image.obstacle(source)
    pipe = loading.skeleton(source) if obstacle else denoiser.skeleton(source)
    points = [hook_points.resolve(pipe, name) for name in hook_points.point_names(pipe)]
    denoiser_points = [point for point in points if point.component == source.layout.denoiser]
    shapes, timesteps = {}, 1
    if denoiser_points:
        shapes, timesteps = _denoiser_shapes(config, source, pipe, denoiser_points)
    unused = dependence.unused_in_skeleton(source, pipe)
    unused |= frozenset(name for name, shape in shapes.items() if not shape.is_used)
    item_size = torch.empty(0, dtype=DTYPES[extract.dtype]).element_size()
    lines: list[tuple[str, ...]] = [
        ("hook point", "[positions, d]", "one sample", f"x {timesteps} timesteps", "difference", "")
    ]
    for point in points:
        shape = shapes.get(point.name)
        if shape is None:
            positions = _text_positions(source, pipe, point)
            cells = _size(positions * point.d * item_size), "", ""
        else:
            positions = 1 if extract.pool == "mean" else shape.positions
            size = positions * shape.d * item_size
            cells = _size(size), _size(size * timesteps), "yes" if shape.input_matches else "no"
        mark = "unused" if point.name in unused else ""
        lines.append((point.name, f"[{positions:,}, {point.d:,}]", *cells, mark))
    pixels = f"{extract.height} x {extract.width} pixels, " if denoiser_points else ""
    title = f"{config.model.id}, {pixels}{extract.dtype}, config.extract.pool={extract.pool}"
    notes = [f"the denoiser is left out: {obstacle}"] if obstacle else []
    if unused:
        notes.append("unused: no output of the pipeline depends on this hook point")
    return "\n".join([title, *_aligned(lines), *notes])


def _denoiser_shapes(
    config: Config, source: PipelineSource, pipe: typing.Any, points: list[HookPoint]
) -> tuple[dict[str, ActivationShape], int]:
    """Return the shape of each hook point of the denoiser, and the number of recorded timesteps."""
    extract = config.extract
    latent = denoiser.latent_shape(source, getattr(pipe, points[0].component), extract)
    timesteps = len(extract.timesteps)
    if extract.mode == "generate" and not timesteps:
        timesteps = len(denoiser.schedule(source, config, latent))
    return denoiser.shapes(source.layout, pipe, points, latent, denoiser.prompt_tokens(source)), max(timesteps, 1)


def _text_positions(source: PipelineSource, pipe: typing.Any, point: HookPoint) -> int:
    """Return the number of positions of a text encoder's hook point."""
    encoder = getattr(pipe, point.component).config
    return getattr(encoder, "max_position_embeddings", None) or denoiser.prompt_tokens(source) or LONGEST_PROMPT


def _aligned(lines: list[tuple[str, ...]]) -> list[str]:
    """Pad the first column on the right and the others on the left."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = []
    for name, *cells in lines:
        right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        padded.append("  ".join([name.ljust(widths[0]), *right]).rstrip())
    return padded


def _size(count: int) -> str:
    """Return a number of bytes with its decimal unit."""
    size, unit = float(count), 0
    while size >= 1000:
        size, unit = size / 1000, unit + 1
    return f"{size:.4g} {UNITS[unit]}"
