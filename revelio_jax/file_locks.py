"""Locks on open files, which the system releases when the process ends for any reason.

A folder is locked by a file in or beside it, because NFS locks folders only within one machine. Locks need a file
system with flock. On others, every lock succeeds at once.
"""

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Generator

from revelio_jax.errors import ONLY_POSIX, InputError, write_failure

try:
    import fcntl
except ImportError as error:
    raise InputError(ONLY_POSIX) from error

# The name of the lock file in a folder, and the suffix of the lock file beside a temporary folder. A killed process
# leaves the file behind; the next one that locks it removes it.
SUFFIX = ".lock"


def lock(file: int, wait: bool) -> bool:
    """Lock a file open for writing. Return False if another process holds it and ``wait`` is False."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


@contextlib.contextmanager
def refusing(folder: pathlib.Path, message: str) -> Generator[None]:
    """Lock a folder in the block by its file ``.lock``. Raise InputError with ``message`` if another process holds it.

    Also raise InputError if the file cannot be written.
    """
    path = folder / SUFFIX
    try:
        file = _open_lock_file(path, wait=False)
    except OSError as error:
        raise write_failure(str(path), error) from error
    if file is None:
        raise InputError(message)
    with _removing(path, file):
        yield


@contextlib.contextmanager
def waiting(path: pathlib.Path) -> Generator[None]:
    """Wait while another process is in a block of the same path, then lock it in the block."""
    lock_path = path.with_name(path.name + SUFFIX)
    with _removing(lock_path, _open_lock_file(lock_path, wait=True)):
        yield


@contextlib.contextmanager
def temporary(path: pathlib.Path, is_folder: bool) -> Generator[None]:
    """Create an empty temporary file or folder that other processes do not touch in the block.

    Wait while another process uses it. Replace what a killed process left behind.
    """
    if is_folder:
        with waiting(path):
            path.mkdir(exist_ok=True)
            for left in path.iterdir():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield
        return
    file = _open_current(path, wait=True)
    assert file is not None
    try:
        os.ftruncate(file, 0)
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def _removing(path: pathlib.Path, file: int | None) -> Generator[None]:
    """Remove and close a locked file after the block. Processes that wait for it then create another one."""
    assert file is not None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(file)


def _open_lock_file(path: pathlib.Path, wait: bool) -> int | None:
    """Return the open and locked file, as :func:`_open_current`. Create its folder, which others may remove."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return _open_current(path, wait)


def _open_current(path: pathlib.Path, wait: bool) -> int | None:
    """Return the open and locked file under ``path``, which another process may move or remove at any time.

    Return None if another process holds it and ``wait`` is False.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            is_locked = lock(file, wait)
            if is_locked and _is_current(file, path):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        if not is_locked:
            return None


def _is_current(file: int, path: pathlib.Path) -> bool:
    """Return whether an open file is still the file under ``path``."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):  # ESTALE: another machine removed it from NFS
            return False
        raise
