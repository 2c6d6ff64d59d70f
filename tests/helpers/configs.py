"""Configurations with other fields, for tests."""

import dataclasses
import typing

from revelio_jax.config import Config

SECTIONS = ("train", "data", "mesh", "logging")


def changed(config: Config, **fields: typing.Any) -> Config:
    """Return ``config`` with other values for ``run`` and for fields of the sections train, data, mesh and logging."""
    for name, value in fields.items():
        if name == "run":
            config = dataclasses.replace(config, run=value)
            continue
        (section,) = [each for each in SECTIONS if hasattr(getattr(config, each), name)]
        part = dataclasses.replace(getattr(config, section), **{name: value})
        config = dataclasses.replace(config, **{section: part})
    return config
