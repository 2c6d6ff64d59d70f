"""Tiny pipelines of every family, and a function that samples with a method."""

import numpy as np
import pytest

from revelio_jax import baselines
from tests.helpers.pipelines import *  # noqa: F403

PROMPTS = ["a flat emoji of cat", "a glossy 3d emoji of red apple", "red apple"]
SEEDS = [3, 4, 5]
PHRASES = ["glossy 3d", "red"]
SAMPLING = {"steps": 2, "guidance": 3.0, "height": 8, "width": 8, "batch_size": 3}


@pytest.fixture(autouse=True)
def quiet_pipelines(monkeypatch):
    import diffusers

    monkeypatch.setattr(diffusers.DiffusionPipeline, "progress_bar", _no_progress_bar)


def _no_progress_bar(self, iterable=None, total=None):
    import tqdm

    return tqdm.tqdm(iterable, total=total, disable=True)


@pytest.fixture
def run():
    """A function that samples with a method."""

    def sample(name, pipe, /, prompts=PROMPTS, seeds=SEEDS, phrases=PHRASES, sampling=None, **fields) -> np.ndarray:
        settings = baselines.make_settings(name, fields)
        with baselines.open_method(name, pipe, phrases, settings) as sampler:
            return sampler(list(prompts), list(seeds), **SAMPLING | (sampling or {})).images

    return sample
