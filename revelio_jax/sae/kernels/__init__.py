"""Kernels that replace pieces of the training step on some devices. None is required.

Each module holds one piece in two forms of the same signature: ``xla`` in plain jax.numpy, which runs everywhere and
is what the tests compare with, and ``pallas``. :mod:`revelio_jax.sae.kernels.choice` says where a kernel can be used.
"""
