"""Write the latents and reconstructions that SAELens computes, for the test of the export. Runs in the peers' venv.

.venv-peers/bin/python tests/benchmarks/in_sae_lens.py ROWS.npy OUT.npz EXPORT_FOLDER...

OUT.npz has latents0 and reconstruction0 of the first folder, latents1 and reconstruction1 of the second, and so on.
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
