"""Tiny pipelines, the miniatures, inputs: see tests/helpers."""

from tests.helpers.extraction import *  # noqa: F403
from tests.helpers.steering import *  # noqa: F403
