"""Tiny pipelines and inputs: see tests/helpers/extraction.py."""

from tests.helpers.extraction import *  # noqa: F403
