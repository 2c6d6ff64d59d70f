"""The explorer: a pipeline and its latents in a page, live. torch only, never JAX."""
