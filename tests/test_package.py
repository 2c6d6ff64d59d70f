"""The top-level API, and the wheel, which works in any folder without a clone."""

import os
import pathlib
import shutil
import subprocess
import sys
import tomllib

import pytest

import revelio_jax
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


def test_pyproject_lists_every_package():
    folders = {
        path.parent.relative_to(ROOT) for top in ("extract", "revelio_jax") for path in (ROOT / top).rglob("*.py")
    }
    names = {".".join(folder.parts) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == names | {"revelio_jax.shipped_configs"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, unpacked, and an empty working directory; returns a function that runs Python there."""
    folder = tmp_path_factory.mktemp("wheel")
    project = folder / "project"  # setuptools writes its build folder next to pyproject.toml
    for name in ("configs", "extract", "revelio_jax"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    pip = [sys.executable, "-m", "pip", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(project)]
    done = subprocess.run(build, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the wheel cannot be built here: {done.stderr.strip().splitlines()[-1]}")
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], check=True)
    work = folder / "work"
    work.mkdir()

    def run(*arguments: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": str(site)}
        return subprocess.run([sys.executable, *arguments], cwd=work, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.slow
def test_the_wheel_holds_configs_and_miniatures(installed):
    code = "import revelio_jax, extract; print(revelio_jax.__file__, extract.__file__, revelio_jax.miniature('flux'))"
    paths = installed("-c", code).stdout.split()
    assert len(paths) == 3
    assert not [path for path in paths if pathlib.Path(path).is_relative_to(ROOT)]
    listed = installed("-m", "revelio_jax", "extract", "--config", "mini_sd", "--list_sites")
    assert listed.returncode == 0, listed.stderr
    assert "clip.layer.2" in listed.stdout


@pytest.mark.slow
def test_the_wheel_extracts_in_an_empty_folder(installed):
    flags = ["--config=mini_sd", "--config.extract.prompts=p.txt", "--config.extract.store=store"]
    code = "import pathlib; pathlib.Path('p.txt').write_text('flat emoji of red apple\\n')"
    assert installed("-c", code).returncode == 0
    done = installed("-m", "revelio_jax", "extract", *flags)
    assert done.returncode == 0, done.stderr
    code = "from revelio_jax import open_store; print(open_store('store').manifest['model']['id'])"
    assert installed("-c", code).stdout == "extract/miniature/sd\n"


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
    done = installed("-c", "\n".join(lines))
    assert done.returncode == 0, done.stderr
