"""Two processes that write the same run: the second waits, or is refused with one line."""

import fcntl
import os
import pathlib
import stat
import subprocess
import sys
import threading

import pytest

from revelio_jax import file_locks, files, grid, run_folders
from revelio_jax.errors import InputError
from revelio_jax.store import layout
from revelio_jax.train import train


@pytest.mark.parametrize("write", ["file", "folder"])
def test_a_second_writer_waits_for_the_first(tmp_path, write, monkeypatch):
    path = tmp_path / "out"
    lock, is_free, second_locks = file_locks.lock, [], threading.Event()

    def traced_lock(file: int, wait: bool) -> bool:
        is_free.append(lock(file, wait=False))
        if len(is_free) == 2:
            second_locks.set()
        return is_free[-1] or lock(file, wait)

    def replace(text: str, started: threading.Event, go_on: threading.Event) -> None:
        replacing = files.replacing if write == "file" else files.replacing_folder
        with replacing(path) as part:
            started.set()
            file = part if write == "file" else part / "a"
            assert write == "folder" or not file.read_bytes()
            file.write_text(text[:1])
            go_on.wait()
            file.write_text(text)

    events = [threading.Event() for _ in range(4)]
    first = threading.Thread(target=replace, args=("first", *events[:2]))
    second = threading.Thread(target=replace, args=("second", *events[2:]))
    monkeypatch.setattr(file_locks, "lock", traced_lock)
    first.start()
    events[0].wait()
    second.start()
    events[3].set()
    assert second_locks.wait(60)
    has_begun = events[2].is_set()
    events[1].set()
    first.join()
    second.join()
    assert is_free[:2] == [True, False]
    assert not has_begun
    assert (path if write == "file" else path / "a").read_text() == "second"
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
    lock_file = str(run / ".lock")
    code = f"import fcntl; f = open({lock_file!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout
    other.stdout.readline()
    config = with_train(base, run=str(tmp_path / "run"), resume=True)
    with pytest.raises(InputError, match=f"config.run is '{run}', which another process is training; wait for it"):
        train(config) if command == "train" else grid.train(config, ["sae.k=3"])
    other.kill()
    other.communicate()
    assert [path.name for path in run.iterdir()] == [".lock"]
    with file_locks.refusing(run, "the system releases the lock of a killed process"):
        pass
    assert list(run.iterdir()) == []


def test_only_files_open_for_writing_are_locked(tmp_path, monkeypatch):
    """NFS locks no folders between machines, and for exclusive locks it needs files that are open for writing."""
    flock, locked = fcntl.flock, []

    def checked_flock(file: int, operation: int) -> None:
        is_file = stat.S_ISREG(os.fstat(file).st_mode)
        locked.append(is_file and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", checked_flock)
    run = tmp_path / "run"
    with file_locks.refusing(run, "held"), pytest.raises(InputError, match="held"), file_locks.refusing(run, "held"):
        pass
    for is_folder in (False, True):
        with file_locks.temporary(tmp_path / "new", is_folder):
            (tmp_path / "new").rmdir() if is_folder else (tmp_path / "new").unlink()
    assert locked == [True] * 4
    assert [path.name for path in tmp_path.rglob("*")] == ["run"]


def test_a_lock_file_that_another_process_removes_is_created_again(tmp_path, monkeypatch):
    """As if the holder of the lock removed its file just before this process got the lock."""
    lock, removed = file_locks.lock, []

    def lock_late(file: int, wait: bool) -> bool:
        if not removed:
            (tmp_path / ".lock").unlink()
            removed.append(file)
        return lock(file, wait)

    monkeypatch.setattr(file_locks, "lock", lock_late)
    with file_locks.refusing(tmp_path, "held"):
        assert (tmp_path / ".lock").exists()
        with pytest.raises(InputError, match="held"), file_locks.refusing(tmp_path, "held"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "run").write_text("a file")
    with (
        pytest.raises(InputError, match=r"run/\.lock cannot be written: "),
        file_locks.refusing(tmp_path / "run", "held"),
    ):
        pass


def test_lock_files_are_not_uploaded(tmp_path, monkeypatch):
    kvstore = layout.open_kvstore("memory://locked/")
    copy = run_folders._Copy("memory://locked", kvstore, set(), set(), {})
    monkeypatch.setitem(run_folders._copies, tmp_path, copy)
    for name in (".lock", "export.part.lock", "config.json"):
        (tmp_path / name).write_text("")
    run_folders.push(tmp_path)
    assert kvstore.list().result() == [b"config.json"]


def test_a_refused_run_leaves_no_folder(base, with_train, tmp_path):
    with pytest.raises(InputError, match="there are 8 devices"):
        train(with_train(base, run=str(tmp_path / "runs/a"), feature=64))
    assert not pathlib.Path(tmp_path / "runs").exists()
