"""Steering: an exported SAE as a control on a diffusers pipeline. torch only, never JAX."""

from revelio_jax.steering.attachment import Attachment, Clamp
from revelio_jax.steering.steerer import Steerer
from revelio_jax.steering.vectors import Concept, attach_vectors, load_concept, save_concept

__all__ = ["Attachment", "Clamp", "Concept", "Steerer", "attach_vectors", "load_concept", "save_concept"]
