"""Releases of JAX that are slow on CUDA devices are refused there, and nowhere else."""

import shutil
import types

import jax
import pytest

from revelio_jax import grid
from revelio_jax.errors import InputError
from revelio_jax.evaluate import evaluate
from revelio_jax.sae import releases
from revelio_jax.train import train

REFUSED = r"^jax is 0\.10\.2; on CUDA devices it must be at least 0\.11\.2, .*revelio_jax\[train-cuda13\]"


def device(platform, platform_version):
    """A device of another machine, with what JAX reports about its backend."""
    return types.SimpleNamespace(platform=platform, client=types.SimpleNamespace(platform_version=platform_version))


CPU = device("cpu", "cpu")
CUDA = device("gpu", "PJRT C API\ncuda 13010")
ROCM = device("gpu", "PJRT C API\nrocm 70051831")
TPU = device("tpu", "PJRT C API\nTFRT TPU v5 lite")


@pytest.fixture
def use_release(monkeypatch):
    """A function that makes JAX report another release."""

    def use(*version):
        monkeypatch.setattr(jax, "__version_info__", version)
        monkeypatch.setattr(jax, "__version__", ".".join(map(str, version)))

    return use


@pytest.mark.parametrize("version", [(0, 8, 0), (0, 10, 2), (0, 11, 1)])
def test_old_releases_are_refused_on_cuda(use_release, version):
    use_release(*version)
    with pytest.raises(InputError, match=rf"^jax is {'.'.join(map(str, version))}; on CUDA devices"):
        releases.check([CPU, CUDA])


@pytest.mark.parametrize("version", [(0, 11, 2), (0, 12, 0, 1), (1, 0, 0)])
def test_newer_releases_are_accepted_on_cuda(use_release, version):
    use_release(*version)
    releases.check([CUDA])


def test_old_releases_are_accepted_on_other_devices(use_release):
    use_release(0, 10, 2)
    releases.check([CPU, ROCM, TPU])
    releases.check(jax.devices())


@pytest.mark.parametrize("command", [train, lambda config: grid.train(config, ["sae.k=2,3"])], ids=["train", "grid"])
def test_training_is_refused_before_anything_is_written(use_release, monkeypatch, base, with_train, tmp_path, command):
    use_release(0, 10, 2)
    monkeypatch.setattr(jax, "devices", lambda: [CUDA])
    with pytest.raises(InputError, match=REFUSED):
        command(with_train(base, run=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_evaluation_is_refused_before_anything_is_written(use_release, monkeypatch, trained, with_train, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained.run, run, ignore=shutil.ignore_patterns("evaluation.json"))
    use_release(0, 10, 2)
    monkeypatch.setattr(jax, "devices", lambda: [CUDA])
    with pytest.raises(InputError, match=REFUSED):
        evaluate(with_train(trained, run=str(run)))
    assert not (run / "evaluation.json").exists()
