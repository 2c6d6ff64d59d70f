"""The command that fuzzes commands finds each kind of fault."""

import random
import signal

import pytest

from revelio_jax.config import schema
from tests.fuzz import commands

LINE = "error: config.train.steps is 0; it must be at least 1\n"


@pytest.mark.parametrize(
    ("status", "text", "changed", "expected"),
    [
        (0, "", {("a", 1, 1)}, ""),
        (2, LINE, set(), ""),
        (1, "error: out of memory\n", {("a", 1, 1)}, ""),
        (-signal.SIGALRM, "", {("a", 1, 1)}, ""),
        (70, "Traceback (most recent call last):\nKeyError: 1\n", set(), "traceback: KeyError: 1"),
        (-signal.SIGABRT, "", set(), "status -6"),
        (2, LINE * 2, set(), "not one line"),
        (2, "", set(), "not one line"),
        (2, LINE, {("a", 1, 1)}, "files left"),
    ],
)
def test_a_fault_is_found(status, text, changed, expected):
    assert commands.fault(status, text, changed).startswith(expected)
    assert bool(commands.fault(status, text, changed)) == bool(expected)


def test_every_field_gets_texts_without_nul():
    draw = random.Random(0)
    for name in schema.field_names():
        assert "\0" not in commands.values_of(name, draw)
