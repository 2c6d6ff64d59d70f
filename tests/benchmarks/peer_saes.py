"""Write small SAEs of SAELens and sparsify with the latents that these libraries compute. Runs in the peers' venv.

.venv-peers/bin/python tests/benchmarks/peer_saes.py FOLDER

Every SAE gets a folder in FOLDER with the library's own files and theirs.safetensors: rows x [N, D], codes [N, F] and
reconstruction [N, D]. This script wrote tests/revelio_jax/steering/saes.
"""

import pathlib
import sys

import torch
from sae_lens import SAE
from safetensors.torch import save_file
from sparsify import SparseCoder, SparseCoderConfig

D, F, K, N = 6, 16, 3, 12
SHAPES = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
SAE_LENS = {
    "topk": {"k": K},
    "topk_rescaled": {"k": K, "rescale_acts_by_decoder_norm": True},
    "topk_bfloat16": {"k": K, "dtype": "bfloat16"},
    "jumprelu": {},
    "standard": {"apply_b_dec_to_input": False},
}
out = pathlib.Path(sys.argv[1])
generator = torch.Generator().manual_seed(0)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)


for name, fields in SAE_LENS.items():
    architecture = name.partition("_")[0]
    metadata = {"model_name": "gpt2", "hook_name": "blocks.2.hook_resid_post"}
    config = {"architecture": architecture, "d_in": D, "d_sae": F, "metadata": metadata, **fields}
    sae = SAE.from_dict(config)
    for parameter, shape in SHAPES.items():
        getattr(sae, parameter).data = random(*shape).to(sae.dtype)
    if architecture == "jumprelu":
        sae.threshold.data = random(F).exp()
    sae.save_model(out / f"sae_lens_{name}")
    sae.to(dtype=torch.float32)  # stored as bfloat16, compared in float32
    x = random(N, D)
    with torch.inference_mode():
        codes = sae.encode(x)
        theirs = {"x": x, "codes": codes.float(), "reconstruction": sae.decode(codes).float()}
    save_file(theirs, out / f"sae_lens_{name}" / "theirs.safetensors")

for point in ("layers.1", "layers.2"):
    coder = SparseCoder(D, SparseCoderConfig(num_latents=F, k=K))
    for parameter in coder.parameters():
        parameter.data = random(*parameter.shape)
    coder.save_to_disk(out / "sparsify" / point)
    x = random(N, D)
    with torch.inference_mode():
        values, indices, _ = coder.encode(x)
        codes = torch.zeros(N, F).scatter(1, indices, values)
        theirs = {"x": x, "codes": codes, "reconstruction": coder.decode(values, indices)}
    save_file(theirs, out / "sparsify" / point / "theirs.safetensors")
