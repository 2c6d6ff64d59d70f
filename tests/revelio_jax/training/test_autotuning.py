"""XLA reads and saves its choices in the folder of the run, if a step is compiled for a GPU."""

import jax
import numpy as np

from revelio_jax.sae import sharding
from revelio_jax.training import autotuning, dispatch
from tests.helpers import h100


def test_a_cpu_needs_no_choices(tmp_path):
    assert autotuning.compiler_options(tmp_path, sharding.make_mesh(1, 1, 1, 1)) is None
    assert not list(tmp_path.iterdir())


def test_xla_takes_the_option_for_an_h100(tmp_path):
    mesh = h100.mesh()
    options = autotuning.compiler_options(tmp_path / "run", mesh)
    assert (tmp_path / "run" / "autotune").is_dir()
    place = jax.NamedSharding(mesh, sharding.REPLICATED)
    state = jax.ShapeDtypeStruct((256, 256), np.float32, sharding=place)
    step = dispatch.make_dispatch(jax.jit(lambda state, x: (state @ x, x.sum())), state, 1, mesh, options)
    step.lower(state, state).compile()  # XLA refuses options that it does not know
