"""python -m revelio_jax.steering.table: another name of ``revelio_jax.benchmark.table``."""

import runpy

if __name__ == "__main__":
    runpy.run_module("revelio_jax.benchmark.table", run_name="__main__")
