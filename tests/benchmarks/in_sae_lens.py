"""Runs in the peers' venv: latents and reconstruction of rows by SAELens, for the test of the export.

.venv-peers/bin/python tests/benchmarks/in_sae_lens.py ROWS.npy OUT.npz EXPORT_FOLDER...

OUT.npz holds latents0, reconstruction0 of the first folder, and so on.
"""

import sys

import numpy as np
import torch
from sae_lens import SAE

rows, out, *folders = sys.argv[1:]
arrays = {}
for index, folder in enumerate(folders):
    sae = SAE.load_from_disk(folder, device="cpu")
    with torch.inference_mode():
        latents = sae.encode(torch.from_numpy(np.load(rows)))
        arrays[f"latents{index}"] = latents.to_dense().numpy()
        arrays[f"reconstruction{index}"] = sae.decode(latents).numpy()
np.savez(out, **arrays)
