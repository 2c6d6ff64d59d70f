"""Measure an SAE on held-out rows: its reconstruction, also for groups of the rows, and its latents."""
