"""The devices of a run in one line, and a warning about NVIDIA GPUs that JAX does not use."""

import glob
import shutil
import subprocess
import typing
from collections.abc import Mapping, Sequence

import jax

GPU_FILES = "/dev/nvidia[0-9]*"


def describe(devices: Sequence[typing.Any], environment: Mapping[str, str]) -> str:
    """Return backend, kind and number of ``devices``, the devices of the mesh. Warn in a second line if needed."""
    kinds = ", ".join(dict.fromkeys(device.device_kind for device in devices))
    others = jax.device_count() - len(devices)
    unused = f"; {others} more {'device is' if others == 1 else 'devices are'} not in config.mesh" if others else ""
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    line = f"JAX {jax.__version__} on {devices[0].platform}: {len(devices)} x {kinds}{processes}{unused}"
    if devices[0].platform == "cpu" and (gpus := unused_gpus(environment)):
        line += (
            f"\nwarning: this machine has {gpus}, but JAX uses the CPU; pip install 'revelio_jax[train-cuda13]' "
            "(Python 3.12 or newer), or set JAX_PLATFORMS=cpu to train on the CPU without this warning"
        )
    return line


def unused_gpus(environment: Mapping[str, str]) -> str:
    """Return the names of this machine's NVIDIA GPUs, or "" without GPUs or if the environment hides them from JAX.

    nvidia-smi and the device files are asked, because the trainer does not import torch.
    """
    hidden = environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hidden or environment.get("JAX_PLATFORMS", "").strip().lower() == "cpu":
        return ""
    files = glob.glob(GPU_FILES)
    program = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if program:
        command = [program, "--query-gpu=name", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
            names = done.stdout.splitlines() if done.returncode == 0 else []
        except (OSError, subprocess.TimeoutExpired):
            names = []
        if names:
            return f"{len(names)} x {', '.join(dict.fromkeys(name.strip() for name in names))}"
    return f"{len(files)} NVIDIA device files" if files else ""
