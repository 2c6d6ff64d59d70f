"""Two processes that write the same run: the second waits, or is refused with one line."""

import pathlib
import subprocess
import sys
import threading

import pytest

from revelio_jax import file_locks, files, grid
from revelio_jax.errors import InputError
from revelio_jax.train import train


@pytest.mark.parametrize("write", ["file", "folder"])
def test_a_second_writer_waits_for_the_first(tmp_path, write):
    path, texts = tmp_path / "out", []

    def replace(text: str, started: threading.Event, go_on: threading.Event) -> None:
        replacing = files.replacing if write == "file" else files.replacing_folder
        with replacing(path) as part:
            started.set()
            file = part if write == "file" else part / "a"
            assert write == "folder" or not file.read_bytes()
            file.write_text(text[:1])
            go_on.wait()
            file.write_text(text)
        texts.append((path if write == "file" else path / "a").read_text())

    events = [threading.Event() for _ in range(4)]
    first = threading.Thread(target=replace, args=("first", *events[:2]))
    second = threading.Thread(target=replace, args=("second", *events[2:]))
    first.start()
    events[0].wait()
    second.start()
    events[3].set()
    assert not events[2].wait(0.2)  # the second writer has not begun
    events[1].set()
    first.join()
    second.join()
    assert texts[-1] == "second"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_replaced(tmp_path):
    (tmp_path / "out.part").write_text("a long rest of a killed process")
    with files.replacing(tmp_path / "out") as part, part.open("r+") as file:
        file.write("new")
    assert (tmp_path / "out").read_text() == "new"


@pytest.mark.parametrize("command", ["train", "grid"])
def test_a_run_that_another_process_trains_is_refused(base, with_train, tmp_path, command):
    run = tmp_path / ("run" if command == "train" else "run/k=3")
    run.mkdir(parents=True)
    code = (
        f"import fcntl, os; fcntl.flock(os.open({str(run)!r}, os.O_RDONLY), fcntl.LOCK_EX); print(flush=True); input()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    other.stdout.readline()
    config = with_train(base, run=str(tmp_path / "run"), resume=True)
    with pytest.raises(InputError, match=f"config.run is '{run}', which another process is training; wait for it"):
        train(config) if command == "train" else grid.train(config, ["sae.k=3"])
    other.kill()
    other.communicate()
    assert list(run.iterdir()) == []
    with file_locks.refusing(run, "the system releases the lock of a killed process"):
        pass


def test_a_refused_run_leaves_no_folder(base, with_train, tmp_path):
    with pytest.raises(InputError, match="there are 8 devices"):
        train(with_train(base, run=str(tmp_path / "runs/a"), feature=64))
    assert not pathlib.Path(tmp_path / "runs").exists()
