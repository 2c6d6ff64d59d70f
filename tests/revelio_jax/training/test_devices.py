"""The first line of a run: the devices, and a warning about NVIDIA GPUs that JAX does not use."""

import pytest

from revelio_jax.training import devices

NAMES = "NVIDIA H100 80GB HBM3\nNVIDIA H100 80GB HBM3\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """``machine(nvidia_smi, files)`` returns an environment whose PATH has that program, and sets device files."""

    def make(script: str | None, files: int = 0, **environment: str) -> dict[str, str]:
        for i in range(files):
            (tmp_path / f"nvidia{i}").touch()
        (tmp_path / "nvidiactl").touch()
        monkeypatch.setattr(devices, "GPU_FILES", str(tmp_path / "nvidia[0-9]*"))
        if script is not None:
            (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / "nvidia-smi").chmod(0o755)
        return {"PATH": str(tmp_path), **environment}

    return make


def test_the_line_names_backend_kind_and_number(machine):
    import jax

    line = devices.describe(jax.devices()[:2], machine(None))
    assert line == f"JAX {jax.__version__} on cpu: 2 x cpu; 6 more devices are not in config.mesh"
    assert devices.describe(jax.devices(), machine(None)) == f"JAX {jax.__version__} on cpu: 8 x cpu"


def test_gpus_that_nvidia_smi_lists_are_named_in_the_warning(machine):
    import jax

    environment = machine(f"printf '{NAMES}'", files=2)
    _, warning = devices.describe(jax.devices()[:1], environment).splitlines()
    assert warning.startswith("warning: this machine has 2 x NVIDIA H100 80GB HBM3, but JAX uses the CPU; pip install ")
    assert "train-cuda13" in warning


@pytest.mark.parametrize("script", [None, "exit 9", "echo 'no devices'; exit 6"])
def test_device_files_are_enough_if_nvidia_smi_is_missing_or_fails(machine, script):
    assert devices.unused_gpus(machine(script, files=2)) == "2 NVIDIA device files"


def test_no_warning_without_gpus_or_if_the_user_hid_them(machine):
    assert devices.unused_gpus(machine(None)) == ""
    assert devices.unused_gpus(machine("exit 9")) == ""
    for hidden in ({"JAX_PLATFORMS": "cpu"}, {"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"}):
        assert devices.unused_gpus(machine(f"printf '{NAMES}'", 2, **hidden)) == ""
    assert devices.unused_gpus(machine(f"printf '{NAMES}'", 2, CUDA_VISIBLE_DEVICES="0")) != ""
