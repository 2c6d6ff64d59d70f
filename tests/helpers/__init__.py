"""Helpers that several test folders share."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]
MINIATURES = ROOT / "extract" / "miniature"
