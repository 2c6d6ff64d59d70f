"""Transition: load_pipeline moved to revelio_jax.pipelines.loading."""

from revelio_jax.pipelines.loading import load_pipeline

__all__ = ["load_pipeline"]
