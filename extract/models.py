"""The pipeline to extract from: of config.model, or one that the caller has built."""

import contextlib
import dataclasses
import typing
from collections.abc import Generator

from revelio_jax.config import Config
from revelio_jax.pipelines import loading, user_pipeline
from revelio_jax.pipelines.source import PipelineSource, find


@contextlib.contextmanager
def opened(config: Config, pipe: typing.Any) -> Generator[tuple[Config, PipelineSource]]:
    """Describe the pipeline for the block. A given one is used as it is, and restored afterwards.

    Return the config, with the family, dtype and device of a given pipeline, and the description. Raise InputError if
    the pipeline is unknown or does not fit the config.
    """
    loading.quiet()
    model = config.model
    if pipe is None:
        yield config, find(model.id, model.revision, model.family)
        return
    source = user_pipeline.source_of(pipe)
    config = dataclasses.replace(config, model=user_pipeline.model_config(model, source))
    with user_pipeline.borrowed(pipe):
        yield config, source
