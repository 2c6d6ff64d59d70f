"""What every latent of an SAE means: what it fires on, where, how strongly, and beside which others."""
