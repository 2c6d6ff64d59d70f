"""File systems that are full, read-only or forbidden, for tests of failed writes."""

import contextlib
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[str], pathlib.Path]]:
    """``small_disk("size=6m")`` mounts a file system in memory with these options. Skip the test without the right."""
    mounted: list[pathlib.Path] = []

    def mount(options: str) -> pathlib.Path:
        folder = tmp_path / "disk"
        folder.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("file systems can be mounted by root only")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def forbidden_folder() -> Iterator[pathlib.Path]:
    """A folder that this process may read but not write, also if the tests run as root."""
    with tempfile.TemporaryDirectory(dir="/tmp") as parent, contextlib.ExitStack() as stack:
        folder = pathlib.Path(parent, "folder")
        folder.mkdir()
        folder.chmod(0o555)
        pathlib.Path(parent).chmod(0o755)
        if os.geteuid() == 0:
            os.seteuid(65534)  # nobody
            stack.callback(os.seteuid, 0)
        yield folder
