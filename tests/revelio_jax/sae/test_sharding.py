"""Devices of several slices (machines with GPUs, TPU slices) are placed so that close ones share the feature axis."""

import dataclasses

import numpy as np
import pytest

from revelio_jax.errors import InputError
from revelio_jax.sae import sharding


@dataclasses.dataclass(frozen=True)
class Gpu:
    """The attributes of a GPU that JAX reads. The GPUs of one machine have the same ``slice_index``."""

    id: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"

    @property
    def process_index(self) -> int:
        return self.id


def gpus(*sizes):
    return [Gpu(8 * i + j, i) for i, size in enumerate(sizes) for j in range(size)]


def slices(shape, sizes):
    """Return the slice of each device of a mesh, and check that every device is there once."""
    devices = gpus(*sizes)
    placed_DF = sharding.place_devices(shape, devices[::-1])
    assert sorted(device.id for device in placed_DF.flat) == sorted(device.id for device in devices)
    return np.vectorize(lambda device: device.slice_index)(placed_DF).tolist()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 8), [[0, 0, 0, 0, 1, 1, 1, 1]]),
        ((2, 4), [[0] * 4, [1] * 4]),
        ((4, 2), [[0, 0], [0, 0], [1, 1], [1, 1]]),
        ((8, 1), [[0]] * 4 + [[1]] * 4),
    ],
)
def test_the_feature_axis_stays_in_a_slice_or_takes_whole_slices(shape, expected):
    assert slices(shape, (4, 4)) == expected


def test_the_feature_axis_takes_two_of_four_slices():
    assert slices((2, 4), (2, 2, 2, 2)) == [[0, 0, 1, 1], [2, 2, 3, 3]]


@pytest.mark.parametrize(("shape", "sizes"), [((2, 3), (2, 2, 2)), ((2, 3), (4, 2)), ((3, 2), (1, 5))])
def test_another_feature_axis_is_refused(shape, sizes):
    with pytest.raises(InputError, match=f"config.mesh.feature is {shape[0]} x {shape[1]}; the devices are in"):
        sharding.place_devices(shape, gpus(*sizes))
