"""Locks on open files and folders, which the system releases when the process ends for any reason.

Locks need a file system with flock. On others, every lock succeeds at once.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Generator

from revelio_jax.errors import ONLY_POSIX, InputError

try:
    import fcntl
except ImportError as error:
    raise InputError(ONLY_POSIX) from error


def lock(file: int, wait: bool) -> bool:
    """Lock an open file or folder. Return False if another process holds it and ``wait`` is False."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


@contextlib.contextmanager
def refusing(folder: pathlib.Path, message: str) -> Generator[None]:
    """Lock an existing folder in the block. Raise InputError with ``message`` if another process holds it."""
    file = os.open(folder, os.O_RDONLY)
    try:
        if not lock(file, wait=False):
            raise InputError(message)
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def temporary(path: pathlib.Path, is_folder: bool) -> Generator[None]:
    """Create an empty temporary file or folder that other processes do not touch in the block.

    Wait while another process uses it. Replace what a killed process left behind.
    """
    file = _open_current(path, is_folder)
    try:
        if not is_folder:
            os.ftruncate(file, 0)
        else:
            for left in path.iterdir():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield
    finally:
        os.close(file)


def _open_current(path: pathlib.Path, is_folder: bool) -> int:
    """Return the open and locked file or folder under ``path``, which another process may move at any time."""
    while True:
        if is_folder:
            path.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR | os.O_CREAT
        try:
            file = os.open(path, flags, 0o666)
        except FileNotFoundError:
            if is_folder:  # moved between the two calls
                continue
            raise
        try:
            lock(file, wait=True)
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except FileNotFoundError:
            pass  # moved while this process waited
        except BaseException:
            os.close(file)
            raise
        os.close(file)
