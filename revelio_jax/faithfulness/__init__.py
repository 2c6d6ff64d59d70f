"""Faithfulness: what a pipeline loses if activations are replaced, by an SAE's reconstruction or by other rows."""
