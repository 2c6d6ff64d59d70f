"""The commands that kill commands and flip bytes count every outcome."""

import json
import pathlib
import random

import flips
import kills
import pytest

from revelio_jax.errors import InputError


@pytest.mark.slow
def test_kills_of_plot_are_counted(kill_library, tmp_path, monkeypatch):
    monkeypatch.chdir(kills.ROOT)
    work = kills.Workplace(tmp_path, kill_library, "")
    line = dict.fromkeys(("loss", "fvu", "dead_fraction"), 0.5) | {"step": 1}
    for command in kills.CASES["plot"].after:
        run = work.saved / command / "run"
        run.mkdir(parents=True)
        (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    row = kills.measure(work, "plot", 5, seed=0)
    assert (row.tried, row.survived, row.faults) == (5, 5, [])
    assert set(row.places) == {"clock", "write", "rename"}


def test_a_part_of_a_file_and_a_leftover_are_found(tmp_path):
    (tmp_path / "a.json").write_text('{"x": 1, "made": 1}')
    whole = kills.read_tree(tmp_path)
    (tmp_path / "a.json").write_text('{"made": 2, "x": 1}')
    assert not kills.difference(kills.read_tree(tmp_path), whole)
    (tmp_path / "a.json.part").write_text('{"x"')
    assert kills.difference(kills.read_tree(tmp_path), whole) == "a.json.part"
    assert not any(kills.is_torn(name, content, whole) for name, content in kills.read_tree(tmp_path).items())
    for text in ('{"x"', '{"x": 2}'):
        (tmp_path / "a.json").write_text(text)
        assert kills.is_torn("a.json", kills.read_tree(tmp_path)["a.json"], whole)


def test_flips_are_counted_by_outcome(tmp_path):
    (tmp_path / "digits").write_text("1" * 64)

    def read() -> list[str]:
        text = (tmp_path / "digits").read_bytes().decode("latin-1")
        if any(c > "~" for c in text):
            raise InputError("a digit is broken")
        return [str(int(c)) for c in text[:32]]  # the other half is not read

    row = flips.measure(pathlib.Path(tmp_path), "digits", ("*",), read, 100, random.Random(0))
    assert row["tried"] == 100
    assert all(row[name] for name in ("reported", "same", "wrong", "traceback"))
    assert len(row["faults"]) == row["wrong"] + row["traceback"]
    assert (tmp_path / "digits").read_text() == "1" * 64
