"""PyTorch side of the project: activations of diffusion pipelines, written to activation stores."""
