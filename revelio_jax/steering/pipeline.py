"""The whole pipeline that a config names, ready to sample."""

import typing

from diffusers import DiffusionPipeline

from extract import pipelines
from revelio_jax.config import Model
from revelio_jax.errors import InputError


def load_pipeline(model: Model) -> typing.Any:
    """Load ``model.id`` from a folder or the hub. Raises InputError where that fails."""
    pipelines.quiet()
    device = pipelines.device(model.device)
    source = pipelines.find(model.id, model.revision, model.family)
    try:
        pipe = DiffusionPipeline.from_pretrained(
            source.id, revision=source.revision or None, torch_dtype=pipelines.DTYPES[model.dtype]
        )
    except pipelines.LOAD_ERRORS as error:
        raise InputError(f"config.model.id {source.id!r} cannot be loaded: {str(error)[:300]}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
