"""The configuration that every command reads: its fields, their defaults and their checks.

A file in ``configs/`` starts from :func:`default` and sets only the fields that its experiment changes. Commands
read it with :func:`revelio_jax.cli.parse`, which returns these frozen dataclasses.
"""

from revelio_jax.config.analysis import RULES, InterpretConfig, SteerConfig, TagsConfig
from revelio_jax.config.benchmark import BenchmarkConfig
from revelio_jax.config.extraction import ExtractConfig, ModelConfig
from revelio_jax.config.schema import SECTIONS, Config, default, did_you_mean, resolve
from revelio_jax.config.training import DataConfig, LoggingConfig, MeshConfig, SaeConfig, TrainConfig

__all__ = [
    "RULES",
    "SECTIONS",
    "BenchmarkConfig",
    "Config",
    "DataConfig",
    "ExtractConfig",
    "InterpretConfig",
    "LoggingConfig",
    "MeshConfig",
    "ModelConfig",
    "SaeConfig",
    "SteerConfig",
    "TagsConfig",
    "TrainConfig",
    "default",
    "did_you_mean",
    "resolve",
]
