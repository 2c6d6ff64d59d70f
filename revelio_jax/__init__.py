"""k-sparse autoencoders on diffusion models: train, evaluate, export, steer."""
