"""Methods of others that remove a concept, each as a Sampler: what steering is compared with.

settings = make_settings("sld", {"preset": "max"})
with counted(pipe) as evaluations, open_method("sld", pipe, ["blood", "violence"], settings) as sampler:
    samples = sampler(prompts, seeds, steps=50, guidance=7.5, height=512, width=512, batch_size=4)
"""

from revelio_jax.baselines.evaluations import Evaluations, counted
from revelio_jax.baselines.methods import METHODS, Method, check_method, make_settings, open_method
from revelio_jax.baselines.sampler import Sampler

__all__ = [
    "METHODS",
    "Evaluations",
    "Method",
    "Sampler",
    "check_method",
    "counted",
    "make_settings",
    "open_method",
]
