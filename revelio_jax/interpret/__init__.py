"""Interpret the latents of an SAE: top samples, label purity, neighbors, tags, probes and the report."""
