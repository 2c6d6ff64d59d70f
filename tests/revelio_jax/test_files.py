"""Atomic writes, and the output file of commands that take run folders."""

import pytest

from revelio_jax import files
from revelio_jax.errors import EnvironmentFailure, InputError


def test_output_goes_into_the_run_or_into_the_parent_folder_of_several(tmp_path):
    runs = [tmp_path / "a", tmp_path / "b"]
    for run in runs:
        run.mkdir()
    a, b = map(str, runs)
    assert files.output_file(None, [a], "p.png") == tmp_path / "a" / "p.png"
    assert files.output_file(None, [a, b], "p.png") == tmp_path / "p.png"
    assert files.output_file(tmp_path / "mine.png", [a, b], "p.png") == tmp_path / "mine.png"
    assert not list(tmp_path.rglob("*p*.p*"))  # the trial write leaves nothing


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("none/p.png", "it must be a file in an existing folder"),
        (".", "it must be a file in an existing folder"),
        ("p.csv", "it must end in .png"),
        ("p", "it must end in .png"),
        ("taken.png", "which cannot be written"),
        ("/proc/p.png", "which cannot be written"),
    ],
)
def test_an_unwritable_output_file_is_refused_first(tmp_path, out, message):
    (tmp_path / "taken.png.part").mkdir()
    with pytest.raises(InputError, match=message):
        files.output_file(tmp_path / out, [str(tmp_path)], "p.png")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "p.json"
    path.write_text("old")

    def write(error):
        with files.replacing(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(ZeroDivisionError):
        write(ZeroDivisionError)
    with pytest.raises(EnvironmentFailure, match=r"p\.json cannot be written: No space left"):
        write(OSError(28, "No space left on device"))
    assert path.read_text() == "old"
    files.write_text(path, "new ä")
    assert path.read_text(encoding="utf-8") == "new ä"
    files.write_bytes(path, b"\0")
    assert path.read_bytes() == b"\0"
    assert [file.name for file in tmp_path.iterdir()] == ["p.json"]


def test_a_file_in_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"none/p\.json cannot be written: No such file or directory"):
        files.write_text(tmp_path / "none" / "p.json", "")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "f"
    with files.replacing_folder(folder) as part:
        (part / "old").write_text("")

    def write(error):
        with files.replacing_folder(folder) as part:
            (part / "half").write_text("")
            raise error

    with pytest.raises(ZeroDivisionError):
        write(ZeroDivisionError)
    with pytest.raises(EnvironmentFailure, match="f cannot be written: No space left"):
        write(OSError(28, "No space left on device"))
    assert [file.name for file in folder.iterdir()] == ["old"]
    with files.replacing_folder(folder) as part:
        (part / "new").write_text("")
    assert [file.name for file in folder.iterdir()] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["f"]


def test_a_folder_is_restored_after_its_replacement_was_killed(tmp_path):
    (tmp_path / "f.old").mkdir()
    (tmp_path / "f.old" / "kept").write_text("")
    (tmp_path / "f.part").mkdir()
    files.prepare_folder(tmp_path / "f")
    assert (tmp_path / "f" / "kept").exists()
    with pytest.raises(ZeroDivisionError), files.replacing_folder(tmp_path / "f"):
        raise ZeroDivisionError
    assert (tmp_path / "f" / "kept").exists()


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(InputError, match="f is a file; it must be a folder or not exist"):
        files.prepare_folder(tmp_path / "f")


def test_a_line_is_appended_after_the_last_finished_one(tmp_path):
    path = tmp_path / "lines.jsonl"
    for content, expected in [("", ""), ("one\n", "one\n"), ("one\nunfini", "one\n"), ("unfini", "")]:
        path.write_text(content)
        files.append_line(path, "größe")
        assert path.read_text() == expected + "größe\n"
    with pytest.raises(InputError, match="cannot be written"):
        files.append_line(tmp_path / "missing" / "lines.jsonl", "one")
