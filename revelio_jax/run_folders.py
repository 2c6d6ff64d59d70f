"""Run folders. A run on object storage has a local copy, whose changes are written back.

Orbax cannot write to ``s3://``, so commands work on a copy in the system's folder for temporary files. The copy is
removed at the end of the process. Functions that take a folder do nothing if it is not a copy.

MARKERS are files without which a folder is not read. On object storage, the marker of a folder is deleted before
another file of the folder changes, and written last. So a command that is killed leaves no folder that mixes old and
new files.
"""

import atexit
import concurrent.futures
import dataclasses
import fnmatch
import pathlib
import re
import shutil
import tempfile
import typing
from collections.abc import Callable, Collection

import tensorstore as ts

from revelio_jax import file_locks, files
from revelio_jax.config import Config
from revelio_jax.errors import InputError, read_failure, write_failure
from revelio_jax.store import layout, object_storage

# Of a checkpoint, of an SAE folder, of the results of interpretation, and of a report.
MARKERS = ("_CHECKPOINT_METADATA", "cfg.json", "summary.json", "index.html")

_CHECKPOINT = re.compile(r"checkpoints/\d+/")
_PARALLEL = 4  # files that are read or written at once; each is in memory as a whole
_PROBE = ".writable"

_copies: dict[pathlib.Path, "_Copy"] = {}


class _Copy(typing.NamedTuple):
    """A run on object storage, whose copy is a local folder.

    ``keys`` are its files, without those of ``unfinished`` checkpoints. ``synced`` are the modification times in
    nanoseconds and the sizes of the local files that are the same on object storage.
    """

    location: str
    kvstore: ts.KvStore
    keys: set[str]
    unfinished: set[str]
    synced: dict[str, tuple[int, int]]


def open_folder(run: str, *patterns: str) -> pathlib.Path:
    """Return the folder of a run, which need not exist; of a run on object storage, a copy of the matching files.

    In a pattern, ``*`` also matches slashes. Raise InputError if the run cannot be written or listed.
    """
    if not object_storage.is_remote(run):
        files.check_writable(run, "config.run")
        return pathlib.Path(run)
    location = run.rstrip("/")
    kvstore = layout.open_kvstore(location)
    try:
        kvstore.write(_PROBE, b"yes").result()
        kvstore.write(_PROBE, None).result()
        listed = {key.decode() for key in kvstore.list().result()}
    except (ValueError, OSError) as error:
        raise write_failure(f"config.run is {run!r}, which", error) from error
    # A key is a path here, so it must not lead out of the copy.
    keys = {key for key in listed if not {"", ".", ".."} & set(key.split("/"))}
    checkpoints = {found[0] for key in keys if (found := _CHECKPOINT.match(key))}
    unmarked = tuple(folder for folder in checkpoints if folder + MARKERS[0] not in keys)
    unfinished = {key for key in keys if key.startswith(unmarked)}
    parent = tempfile.mkdtemp(prefix="revelio-")
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    folder = pathlib.Path(parent, location.rpartition("/")[2])
    folder.mkdir()
    _copies[folder] = _Copy(location, kvstore, keys - unfinished, unfinished, {})
    pull(folder, *patterns)
    return folder


def with_local_run(config: Config, *patterns: str) -> Config:
    """Return a config whose run is a local folder: of a run on object storage, a copy of the matching files.

    Raise InputError if the run cannot be written or listed.
    """
    if not config.run or not object_storage.is_remote(config.run):
        return config
    return dataclasses.replace(config, run=str(open_folder(config.run, *patterns)))


def is_copy(folder: pathlib.Path) -> bool:
    """Return whether a folder is the copy of a run on object storage."""
    return folder in _copies


def location(path: pathlib.Path) -> str:
    """Return the location of a file or folder as the user knows it: of a copy, its URL."""
    for folder, copy in _copies.items():
        if path.is_relative_to(folder):
            return "/".join([copy.location, *path.relative_to(folder).parts])
    return str(path)


def saved(folder: pathlib.Path, pattern: str) -> list[str]:
    """Return the files of a copy that are on object storage and match a pattern, sorted."""
    return sorted(key for key in _copies[folder].keys if fnmatch.fnmatchcase(key, pattern))


def pull(folder: pathlib.Path, *patterns: str) -> None:
    """Copy the files that match a pattern from object storage, except those that were copied before.

    Raise InputError or EnvironmentFailure if a file cannot be read.
    """
    copy = _copies.get(folder)
    if copy is None:
        return

    def download(key: str) -> None:
        try:
            result = copy.kvstore.read(key).result()
        except ValueError as error:
            raise read_failure(f"{copy.location}/{key}", error) from error
        if result.state != "value":
            raise InputError(f"{copy.location}/{key} is gone; another command changes this run; try again")
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(result.value)
        copy.synced[key] = _state(path)

    missing = copy.keys - set(copy.synced)
    _in_parallel(download, [key for key in missing if any(fnmatch.fnmatchcase(key, each) for each in patterns)])


def push(folder: pathlib.Path) -> None:
    """Write the changes of a copy to object storage, without lock files. The caller must not change files meanwhile.

    Raise InputError or EnvironmentFailure if they cannot be written.
    """
    copy = _copies.get(folder)
    if copy is None:
        return
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(file_locks.SUFFIX))
    local = {path.relative_to(folder).as_posix(): path for path in paths}
    changed = {key for key, path in local.items() if copy.synced.get(key) != _state(path)}
    removed = set(copy.synced) - set(local)
    # Of a removed checkpoint, files that were never copied are removed too.
    folders = tuple(_parent(key) for key in removed if _is_marker(key))
    old = {key for key in copy.keys if key.startswith(folders)}
    leftover = removed - old
    stale = {key for key in copy.keys if _is_marker(key) and any(_covers(key, each) for each in changed | leftover)}
    uploads = changed | (stale & set(local))

    def upload(key: str) -> None:
        state = _state(local[key])
        copy.kvstore.write(key, local[key].read_bytes()).result()
        copy.synced[key] = state
        copy.keys.add(key)

    try:
        _delete(copy, stale)
        _delete(copy, copy.unfinished)
        copy.unfinished.clear()
        _in_parallel(upload, [key for key in uploads if not _is_marker(key)])
        _delete(copy, leftover - stale)
        _in_parallel(upload, [key for key in uploads if _is_marker(key)])
        # Old checkpoints last, so that one is there at any time.
        _delete(copy, {key for key in old if _is_marker(key)})
        _delete(copy, {key for key in old if not _is_marker(key)})
    except (ValueError, OSError) as error:
        raise write_failure(copy.location, error) from error


def _delete(copy: _Copy, keys: set[str]) -> None:
    _in_parallel(lambda key: copy.kvstore.write(key, None).result(), keys)
    copy.keys.difference_update(keys)
    for key in keys:
        copy.synced.pop(key, None)


def _in_parallel(action: Callable[[str], object], keys: Collection[str]) -> None:
    with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as threads:
        for _ in threads.map(action, sorted(keys)):  # raises the first error
            pass


def _is_marker(key: str) -> bool:
    return key.rpartition("/")[2] in MARKERS


def _parent(key: str) -> str:
    """Return the folder of a file, with a slash."""
    return key.rpartition("/")[0] + "/"


def _covers(marker: str, key: str) -> bool:
    """Return whether the folder of a marker holds a file."""
    return key.startswith(_parent(marker))


def _state(path: pathlib.Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
