"""Steer a diffusers pipeline with an exported SAE. Uses torch, never JAX."""

from revelio_jax.steering.attachment import Attachment
from revelio_jax.steering.steerer import Steerer
from revelio_jax.steering.strengths import Clamp, Strength
from revelio_jax.steering.vectors import Concept, attach_vectors, load_concept, save_concept
from revelio_jax.steering.where import Where

__all__ = [
    "Attachment",
    "Clamp",
    "Concept",
    "Steerer",
    "Strength",
    "Where",
    "attach_vectors",
    "load_concept",
    "save_concept",
]
