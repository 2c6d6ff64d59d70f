"""Where commands that take folders of runs write."""

import pytest

from revelio_jax import files
from revelio_jax.errors import InputError


def test_beside_the_run_or_beside_the_first_of_several(tmp_path):
    runs = [tmp_path / "a", tmp_path / "b"]
    for run in runs:
        run.mkdir()
    a, b = map(str, runs)
    assert files.out_of(None, [a], "p.png") == tmp_path / "a" / "p.png"
    assert files.out_of(None, [a, b], "p.png") == tmp_path / "p.png"
    assert files.out_of(tmp_path / "mine.png", [a, b], "p.png") == tmp_path / "mine.png"
    assert not list(tmp_path.rglob("*p*.p*"))  # it was tried, and nothing is left


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("none/p.png", "it must be a file in a folder that is there"),
        (".", "it must be a file in a folder that is there"),
        ("p.csv", "it must end in .png"),
        ("p", "it must end in .png"),
        ("taken.png", "which cannot be written"),
        ("/proc/p.png", "which cannot be written"),
    ],
)
def test_what_cannot_be_written_is_known_first(tmp_path, out, message):
    (tmp_path / "taken.png.part").mkdir()
    with pytest.raises(InputError, match=message):
        files.out_of(tmp_path / out, [str(tmp_path)], "p.png")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "p.json"
    path.write_text("old")

    def write(error):
        with files.replaced(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(ZeroDivisionError):
        write(ZeroDivisionError)
    with pytest.raises(InputError, match=r"p\.json cannot be written: No space left"):
        write(OSError(28, "No space left on device"))
    assert path.read_text() == "old"
    with files.replaced(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["p.json"]
