"""The top-level API, and the wheel, which works in any folder without a clone."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv

import pytest

import revelio_jax
from revelio_jax.files import sha256
from tests.helpers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README_EXAMPLE = (ROOT / "README.md").read_text().partition("```python\n")[2].partition("```")[0]


@pytest.mark.slow
def test_importing_the_package_loads_neither_torch_nor_jax():
    code = (
        "import sys, revelio_jax\n"
        "dir(revelio_jax), revelio_jax.__version__, revelio_jax.miniature('sd'), revelio_jax.InputError\n"
        "assert not {'torch', 'jax', 'diffusers'} & set(sys.modules)\n"
        "from revelio_jax import Steerer\n"
        "assert 'torch' in sys.modules and 'jax' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", revelio_jax.__all__)
def test_every_public_name_exists(name):
    assert getattr(revelio_jax, name) is not None
    assert name in dir(revelio_jax)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'revelio_jax' has no attribute 'Steering'"):
        revelio_jax.Steering  # noqa: B018


def test_the_version_equals_the_version_of_the_project():
    assert revelio_jax.__version__ == PROJECT["project"]["version"]


SHIPPED = ("configs", "extract", "revelio_jax")


def build(project: pathlib.Path, out: pathlib.Path, umask: int) -> dict[str, str]:
    """Build the sdist and the wheel of a folder; return the sha256 of each file by its name."""
    pytest.importorskip("hatchling", reason="hatchling, the build backend, is not installed")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    subprocess.run(command, cwd=project, env=environment, umask=umask, capture_output=True, check=True)
    return {path.name: sha256(path) for path in out.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the sdist and the wheel of a copy of the project, and their sha256 by name."""
    folder = tmp_path_factory.mktemp("built")
    project = folder / "project"
    for name in SHIPPED:
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", "CHANGELOG.md", "LICENSE", "LICENSES.md", "README.md", "SECURITY.md", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    return folder / "dist", build(project, folder / "dist", umask=0o022)


@pytest.mark.slow
def test_the_sdist_builds_the_same_bytes_in_another_folder_at_another_time(built, tmp_path):
    dist, hashes = built
    assert sorted(hashes) == [f"revelio_jax-{revelio_jax.__version__}{end}" for end in ("-py3-none-any.whl", ".tar.gz")]
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    (project,) = tmp_path.iterdir()
    for path in project.rglob("*"):  # as if another user had unpacked it in another year
        path.chmod(0o700 if path.is_dir() else 0o600)
        os.utime(path, (10**9, 10**9))
    again = build(project, tmp_path / "dist", umask=0o077)
    assert again == hashes


@pytest.mark.slow
def test_the_sdist_holds_the_packages_and_nothing_of_this_machine(built):
    dist, _ = built
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        members = archive.getmembers()
        texts = [archive.extractfile(member).read() for member in members if not member.name.endswith(".safetensors")]
    names = {pathlib.PurePath(member.name).relative_to(f"revelio_jax-{revelio_jax.__version__}") for member in members}
    listed = ["git", "-C", str(ROOT), "ls-files", *SHIPPED]
    tracked = {pathlib.PurePath(line) for line in subprocess.check_output(listed, text=True).splitlines()}
    folders = {pathlib.PurePath(name) for name in SHIPPED}
    assert {name for name in names if folders & set(name.parents)} == tracked
    assert {str(name) for name in names - tracked} == {
        *(".gitignore", "CHANGELOG.md", "LICENSE", "LICENSES.md", "PKG-INFO", "README.md", "SECURITY.md"),
        "pyproject.toml",
    }
    assert {(m.uid, m.gid, m.uname, m.gname, m.mode, m.mtime) for m in members} == {(0, 0, "", "", 0o644, 1580601600)}
    here = [str(ROOT), str(dist.parent), socket.gethostname() + "."]
    assert not [text[:80] for text in texts for name in here if name.encode() in text]


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The wheel in a clean environment and an empty working directory; returns a function that runs a program there.

    The environment has no package but this one. It finds the packages of this Python behind its own.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", symlinks=True)
    programs = folder / "env" / "bin"
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "-q",
        "--python",
        str(programs / "python"),
        "install",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*pip, str(next(built[0].glob("*.whl")))], check=True)
    work = folder / "work"
    work.mkdir()

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        argv = [str(programs / program), *arguments]
        return subprocess.run(argv, cwd=work, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.slow
def test_the_wheel_holds_configs_and_miniatures(installed):
    code = "import revelio_jax, extract; print(revelio_jax.__file__, extract.__file__, revelio_jax.miniature('flux'))"
    paths = installed("python", "-c", code).stdout.split()
    assert len(paths) == 3
    assert not [path for path in paths if pathlib.Path(path).is_relative_to(ROOT)]
    listed = installed("revelio", "extract", "--config", "mini_sd", "--list_sites")
    assert listed.returncode == 0, listed.stderr
    assert "clip.layer.2" in listed.stdout


@pytest.mark.slow
def test_the_wheel_extracts_in_an_empty_folder(installed):
    flags = ["--config=mini_sd", "--config.extract.prompts=p.txt", "--config.extract.store=store"]
    code = "import pathlib; pathlib.Path('p.txt').write_text('flat emoji of red apple\\n')"
    assert installed("python", "-c", code).returncode == 0
    done = installed("revelio", "extract", *flags)
    assert done.returncode == 0, done.stderr
    code = "from revelio_jax import open_store; print(open_store('store').manifest['model']['id'])"
    assert installed("python", "-c", code).stdout == "extract/miniature/sd\n"


@pytest.mark.slow
def test_the_readme_example_runs_from_the_wheel(installed, tmp_path):
    lines = [
        "import numpy as np, pathlib, json",
        "from safetensors.numpy import save_file",
        "folder = pathlib.Path('runs/mini_sd/export'); folder.mkdir(parents=True)",
        "W = np.random.default_rng(0).normal(size=(128, 64)).astype(np.float32)",
        "tensors = {'W_enc': W, 'b_enc': W[0] * 0, 'W_dec': W.T.copy(), 'b_dec': W[:, 0] * 0}",
        "save_file(tensors, folder / 'sae_weights.safetensors')",
        "metadata = {'site': 'clip.layer.2', 'model_id': 'extract/miniature/sd', 'family': 'sd'}",
        "cfg = {'architecture': 'topk', 'd_in': 128, 'd_sae': 64, 'k': 8, 'metadata': metadata}",
        "(folder / 'cfg.json').write_text(json.dumps(cfg))",
        README_EXAMPLE,
        "assert image.size == (32, 32)",
    ]
    done = installed("python", "-c", "\n".join(lines))
    assert done.returncode == 0, done.stderr
