"""python -m revelio_jax.steering [sweep]: another name of ``revelio_jax.benchmark.steer`` and ``sweep``."""

import runpy
import sys

is_sweep = sys.argv[1:2] == ["sweep"]
if is_sweep:
    del sys.argv[1]
runpy.run_module(f"revelio_jax.benchmark.{'sweep' if is_sweep else 'steer'}", run_name="__main__")
