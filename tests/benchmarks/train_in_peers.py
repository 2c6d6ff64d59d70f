"""Train one library on batches from standard input, for quality.py. Runs in the peers' venv.

.venv-peers/bin/python tests/benchmarks/train_in_peers.py SYSTEM D LATENTS K BATCH LEARNING FOLDER

LEARNING is learning.Learning as JSON. Standard input has its ``steps`` batches, float32 [BATCH, D], one after another.
FOLDER has held_out.npy, rows to reconstruct after training. Writes x_hat.npy, fired.npy (latents above 0 on any of
these rows) and W_dec_FD.npy into FOLDER.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from in_peers import LIBRARIES
from learning import Learning


def main(system: str, d: int, n: int, k: int, batch: int, learning: Learning, folder: pathlib.Path) -> None:
    torch.set_num_threads(1)  # steps are so small that two threads are slower
    torch.manual_seed(learning.seed)
    library = LIBRARIES[system](d, n, k, batch, learning)

    def batches():
        for _ in range(learning.steps):
            values = bytearray(sys.stdin.buffer.read(4 * batch * d))
            yield torch.frombuffer(values, dtype=torch.float32).view(batch, d)

    library.fit(batches())
    x_hats, fired_F = [], torch.zeros(n, dtype=torch.bool)
    with torch.no_grad():
        for x_BD in torch.from_numpy(np.load(folder / "held_out.npy")).split(batch):
            x_hat_BD, z_BF = library.run(x_BD)
            x_hats.append(x_hat_BD)
            fired_F |= (z_BF > 0).any(0)
    np.save(folder / "x_hat.npy", torch.cat(x_hats).numpy())
    np.save(folder / "fired.npy", fired_F.numpy())
    np.save(folder / "W_dec_FD.npy", library.W_dec_FD().numpy())


if __name__ == "__main__":
    system, d, n, k, batch, learning, folder = sys.argv[1:]
    learning = Learning(**json.loads(learning))
    main(system, int(d), int(n), int(k), int(batch), learning, pathlib.Path(folder))
