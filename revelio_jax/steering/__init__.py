"""Steering: an exported SAE as a control on a diffusers pipeline. torch only, never JAX."""

from revelio_jax.steering.steerer import Attachment, Steerer

__all__ = ["Attachment", "Steerer"]
