"""The shell scripts of the project, checked by shellcheck."""

import shutil
import subprocess

import pytest

from tests.helpers import ROOT


def test_shellcheck_finds_nothing():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    scripts = [*sorted((ROOT / "launch").rglob("*.sh")), *sorted((ROOT / "tests").rglob("*.sh")), ROOT / ".ci" / "run"]
    names = [str(path.relative_to(ROOT)) for path in scripts]
    assert len(names) > 10
    done = subprocess.run(["shellcheck", *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
