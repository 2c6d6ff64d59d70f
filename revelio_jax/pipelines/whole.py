"""The whole pipeline that a config names, ready to sample."""

import typing

from diffusers import DiffusionPipeline

from revelio_jax.config import ModelConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines import loading


def load_pipeline(model: ModelConfig) -> typing.Any:
    """Load ``model.id`` from a folder or the hub. Raises InputError where that fails."""
    loading.quiet()
    device = loading.device(model.device)
    source = loading.find(model.id, model.revision, model.family)
    try:
        pipe = DiffusionPipeline.from_pretrained(
            source.id, revision=source.revision or None, torch_dtype=loading.DTYPES[model.dtype]
        )
    except loading.LOAD_ERRORS as error:
        raise InputError(f"config.model.id {source.id!r} cannot be loaded: {str(error)[:300]}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
