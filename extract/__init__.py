"""The PyTorch side of the project: read activations of diffusion pipelines and write them to activation stores."""
