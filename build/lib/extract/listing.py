"""python -m extract.run --list_sites: every site of a model, its shape and what a sample of it takes.

All of it follows from the components' config files; no weights are read or fetched.
"""

import torch

from revelio_jax.config import Config
from revelio_jax.pipelines import denoiser, hook_points, loading
from revelio_jax.pipelines.loading import DTYPES

UNITS = ("B", "kB", "MB", "GB", "TB")


def table(config: Config) -> str:
    """A line a site of config.model at config.extract.height x width. Raises InputError."""
    extract = config.extract
    denoiser.quiet()
    source = loading.find(config.model.id, config.model.revision, config.model.family)
    pipe = denoiser.skeleton(source)
    every = [hook_points.resolve(pipe, name) for name in hook_points.known_sites(pipe)]
    denoising = [site for site in every if hook_points.is_denoiser_site(site.name)]
    found, timesteps = {}, len(extract.timesteps)
    if denoising:
        latent = denoiser.latent_shape(source, getattr(pipe, denoising[0].component), extract)
        found = denoiser.shapes(source, pipe, denoising, latent)
        if extract.mode == "generate" and not timesteps:
            timesteps = len(denoiser.schedule(source, config, latent))
    timesteps = max(timesteps, 1)

    item = torch.empty(0, dtype=DTYPES[extract.dtype]).element_size()
    lines = [("site", "[positions, d]", "a sample", f"x {timesteps} timesteps", "difference")]
    for site in every:
        if site.name in found:
            shape = found[site.name]
            positions = 1 if extract.pool == "mean" else shape.positions
            of_all = _bytes(positions * shape.d * item * timesteps)
            difference = "yes" if shape.same_input else "no"
        else:
            tokens = getattr(pipe, site.component).config
            positions = getattr(tokens, "max_position_embeddings", None) or denoiser.t5_tokens(source)
            of_all = difference = ""
        row = (
            site.name,
            f"[{positions:,}, {site.d:,}]",
            _bytes(positions * site.d * item),
            of_all,
            difference,
        )
        lines.append(row)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    pixels = f"{extract.height} x {extract.width} pixels, " if denoising else ""
    head = f"{config.model.id}, {pixels}{extract.dtype}, config.extract.pool={extract.pool}"
    return "\n".join([head, *(_aligned(line, widths) for line in lines)])


def _aligned(line: tuple[str, ...], widths: list[int]) -> str:
    name, *rest = line
    cells = [
        name.ljust(widths[0]),
        *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)),
    ]
    return "  ".join(cells).rstrip()


def _bytes(count: int) -> str:
    size, unit = float(count), 0
    while size >= 1000:
        size, unit = size / 1000, unit + 1
    return f"{size:.4g} {UNITS[unit]}"
