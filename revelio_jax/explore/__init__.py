"""The explorer: a page that shows which latents fire, and steers images. Imports torch, never JAX."""
