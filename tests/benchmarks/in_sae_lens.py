"""Runs in the peers' venv: latents and reconstruction of rows by SAELens, for the test of the export.

.venv-peers/bin/python tests/benchmarks/in_sae_lens.py EXPORT_FOLDER ROWS.npy OUT.npz
"""

import sys

import numpy as np
import torch
from sae_lens import SAE

folder, rows, out = sys.argv[1:]
sae = SAE.load_from_disk(folder, device="cpu")
with torch.inference_mode():
    latents = sae.encode(torch.from_numpy(np.load(rows)))
    np.savez(out, latents=latents.to_dense().numpy(), reconstruction=sae.decode(latents).numpy())
