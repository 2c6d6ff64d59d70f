"""Write the results of splice and scan into the folder of a run, with the settings and versions that produced them."""

import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import typing

import diffusers
import torch
import transformers

from revelio_jax import files
from revelio_jax.config import Config
from revelio_jax.faithfulness.experiment import Inputs

EXTRACTION_FIELDS = (
    "mode",
    "value",
    "pool",
    "positions",
    "timesteps",
    "images",
    "prompt",
    "guidance",
    "height",
    "width",
)


def write(config: Config, name: str, results: dict[str, typing.Any], inputs: Inputs) -> pathlib.Path:
    """Write ``results`` as a JSON file of the run; return its path."""
    folder = pathlib.Path(config.run or "")
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **results,
        "model": config.model.id,
        "flags": inputs.flags,
        "settings": dataclasses.asdict(config.steer),
        "extraction": {field: getattr(config.extract, field) for field in EXTRACTION_FIELDS},
        "judge": inputs.judge and inputs.judge.record,
        "versions": {
            "revelio_jax": importlib.metadata.version("revelio_jax"),
            **{module.__name__: module.__version__ for module in (torch, diffusers, transformers)},
        },
    }
    file = folder / name
    files.write_text(file, json.dumps(record, indent=1) + "\n")
    return file
