"""Fixtures: the miniatures, tiny pipelines of every family, and a small random SAE; see tests/helpers/steering.py."""

from tests.helpers.chat_server import server  # noqa: F401
from tests.helpers.steering import *  # noqa: F403
from tests.helpers.tiny_clip import clip_folder  # noqa: F401
