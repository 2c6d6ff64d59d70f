"""Atomic writes of files and folders, and the output file of commands that take run folders.

A reader sees either the old or the new content, never part of the new. If two processes write one path at once, the
second waits for the first. A failed write raises InputError with the path and the system's reason, or
EnvironmentFailure if the disk is full.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Generator, Sequence

from revelio_jax import file_locks
from revelio_jax.errors import InputError, system_error, write_failure


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a UTF-8 text file in one step. Raise InputError if it cannot be written."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Write a file in one step. Raise InputError if it cannot be written."""
    with replacing(path) as part:
        part.write_bytes(data)


def append_line(path: pathlib.Path, line: str) -> None:
    """Append a line to a UTF-8 text file. Remove an unfinished last line first, which a killed process can leave.

    Raise InputError if the file cannot be written.
    """
    try:
        with path.open("ab+") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line.encode() + b"\n")
    except OSError as error:
        raise write_failure(str(path), error) from error


def sha256(path: pathlib.Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Generator[pathlib.Path]:
    """Yield a temporary path in the folder of ``path``. The file written there replaces ``path`` after the block.

    If the block raises, ``path`` keeps its old content. Raise InputError if it cannot be written.
    """
    part = _sibling(path, ".part")
    try:
        with file_locks.temporary(part, is_folder=False):
            try:
                yield part
                os.replace(part, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    part.unlink()
                raise
    except Exception as error:
        if system_error(error):
            raise write_failure(str(path), error) from error
        raise


@contextlib.contextmanager
def replacing_folder(folder: pathlib.Path) -> Generator[pathlib.Path]:
    """Yield an empty folder, which replaces ``folder`` and all its content after the block.

    If the block raises, ``folder`` keeps its old content. Raise InputError if it cannot be written.
    """
    part, old = _sibling(folder, ".part"), _sibling(folder, ".old")
    try:
        with _temporary_folder(folder):
            try:
                yield part
                shutil.rmtree(old, ignore_errors=True)
                if folder.exists():
                    os.rename(folder, old)
                os.rename(part, folder)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
            shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        if system_error(error):
            raise write_failure(str(folder), error) from error
        raise


def prepare_folder(folder: pathlib.Path) -> None:
    """Check that :func:`replacing_folder` can replace ``folder``. Call it before long work, to fail early.

    If an earlier process was killed while it replaced ``folder``, restore the old content. Raise InputError if
    ``folder`` cannot be written.
    """
    try:
        with _temporary_folder(folder):
            _sibling(folder, ".part").rmdir()
    except OSError as error:
        raise write_failure(str(folder), error) from error


@contextlib.contextmanager
def _temporary_folder(folder: pathlib.Path) -> Generator[None]:
    """Create the empty folder that replaces ``folder``; restore the old content if a killed process moved it away."""
    if folder.is_file():
        raise InputError(f"{folder} is a file; it must be a folder or not exist")
    old = _sibling(folder, ".old")
    with file_locks.temporary(_sibling(folder, ".part"), is_folder=True):
        if old.is_dir() and not folder.exists():
            os.rename(old, folder)
        yield


def check_writable(folder: str | pathlib.Path, field: str) -> None:
    """Raise InputError if ``folder``, the value of ``field``, cannot be created or written. Create nothing.

    Call it before inputs are read or a model is loaded.
    """
    if "://" in str(folder):
        raise InputError(f"{field} is {str(folder)!r}; this command needs a local folder")
    existing = pathlib.Path(folder).absolute()
    try:
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir():
            raise InputError(f"{field} is {str(folder)!r}; {existing} is a file, and it must be a folder")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise write_failure(f"{field} is {str(folder)!r}, which", error) from error


def output_file(out: pathlib.Path | None, runs: Sequence[str], name: str) -> pathlib.Path:
    """Return the file that a command writes: ``out`` if set, otherwise ``name`` in the run folder.

    With several runs, the default is ``name`` in the parent folder of the first run. Raise InputError if the file
    cannot be written or its suffix differs from the suffix of ``name``.
    """
    first, suffix = pathlib.Path(runs[0]), pathlib.Path(name).suffix
    path = out or (first if len(runs) == 1 else first.absolute().parent) / name
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--out is {path}; it must be a file in an existing folder")
    if path.suffix != suffix:
        raise InputError(f"--out is {path}; it must end in {suffix}")
    part = _sibling(path, ".part")
    try:
        with file_locks.temporary(part, is_folder=False):
            part.unlink()
    except OSError as error:
        raise write_failure(f"--out is {path}, which", error) from error
    return path


def _sibling(path: pathlib.Path, suffix: str) -> pathlib.Path:
    return path.with_name(path.name + suffix)
