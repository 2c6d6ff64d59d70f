"""Runs in the peers' venv: seconds of training steps of one library, for train_step.py.

.venv-peers/bin/python tests/benchmarks/in_peers.py SYSTEM D LATENTS K BATCH DEAD_FRACTION REPEATS

The library's own training loop runs, on an iterator that hands out the same batch again and again. A
step is what the loop does between two requests for a batch. Between two steps this writes the line
"floor" and waits for a line, while train_step.py times JAX's product; then it times torch's. The last line
that it writes is {step_s, torch_floor_s}, medians.
"""

import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

WARM_UP = 2  # steps in which allocations are made, biases are initialised and Adam makes its moments
MANY = 1_000_000  # steps that a loop is told of; the batches end it

# A library below is (fit, W_enc_FD, age_F, dead_age): its loop over batches, its encoder's weights as rows,
# its count of how long each latent has been silent, and a count at which it takes a latent for dead. Each
# is imported only when it is measured, since nnsight, which dictionary_learning brings, patches torch.
Library = tuple[Callable[[Iterator[torch.Tensor]], None], torch.Tensor, torch.Tensor, int]


def sae_lens(d: int, n: int, k: int, batch: int) -> Library:
    """SAETrainer.fit with its defaults: AuxK, decoder norms kept in the latents' scale, clipping, Adam."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=n, k=k))
    options = SAETrainerConfig(MANY * batch, train_batch_size_samples=batch, lr_end=3e-5)
    trainer = SAETrainer(options, sae, data_provider=iter(()))

    def fit(batches):
        trainer.data_provider = batches
        with contextlib.suppress(StopIteration):
            trainer.fit()

    return fit, sae.W_enc.data.T, trainer.n_forward_passes_since_fired, 2 * options.dead_feature_window


def dictionary_learning(d: int, n: int, k: int, batch: int) -> Library:
    """trainSAE, which calls TopKTrainer.update, with its defaults: AuxK, unit norms, clipping, Adam."""
    from dictionary_learning.trainers.top_k import TopKTrainer
    from dictionary_learning.training import trainSAE

    trainer = TopKTrainer(steps=MANY, activation_dim=d, dict_size=n, k=k, layer=0, lm_name="", device="cpu")

    def fit(batches):
        trainSAE(batches, [{"trainer": lambda: trainer}], steps=MANY, device="cpu")

    age_F, dead_age = trainer.num_tokens_since_fired, 2 * trainer.dead_feature_threshold
    return fit, trainer.ae.encoder.weight.data, age_F, dead_age


def sparsify(d: int, n: int, k: int, batch: int) -> Library:
    """Trainer.fit with AuxK at 1/32 and Adam, which its defaults leave out; unit-norm decoder.

    It takes activations from a language model as that runs. Here the model's one layer gives the batch.
    """
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    class Model(nn.Module):
        device = torch.device("cpu")
        dummy_inputs = {"input_ids": torch.zeros(1, batch, dtype=torch.long)}  # noqa: RUF012

        def __init__(self):
            super().__init__()
            self.layer, self.x_BD = nn.Identity(), torch.zeros(batch, d)

        @property
        def base_model(self):
            return self

        def forward(self, input_ids):
            return self.layer(self.x_BD[None])

    class Texts(torch.utils.data.IterableDataset):
        def __len__(self):
            return MANY

        def __iter__(self):
            for model.x_BD in self.batches:
                yield {"input_ids": model.dummy_inputs["input_ids"][0]}

    model, texts = Model(), Texts()
    coder = SparseCoderConfig(num_latents=n, k=k)
    options = TrainConfig(
        coder, batch_size=1, optimizer="adam", auxk_alpha=1 / 32, hookpoints=["layer"], log_to_wandb=False
    )
    trainer = Trainer(options, texts, model)
    trainer.save = lambda: None  # after the last step

    def fit(batches):
        texts.batches = batches
        trainer.fit()

    age_F, dead_age = trainer.num_tokens_since_fired["layer"], 2 * options.dead_feature_threshold
    return fit, trainer.saes["layer"].encoder.weight.data, age_F, dead_age


LIBRARIES = {
    "sae-lens": sae_lens,
    "eai-sparsify": sparsify,
    "dictionary-learning": dictionary_learning,
}


def main(
    system: str,
    d: int,
    n: int,
    k: int,
    batch: int,
    dead_fraction: float,
    repeats: int,
    ask: Callable[[], None],
) -> dict[str, float]:
    """Medians over ``repeats`` steps; ``ask`` is called before each."""
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    x_BD, W_FD = torch.randn(batch, d), torch.randn(n, d)
    fit, W_enc_FD, age_F, dead_age = LIBRARIES[system](d, n, k, batch)
    dead = torch.randperm(n)[: round(dead_fraction * n)]
    W_enc_FD[dead] *= 0.1  # so that they are never among the k largest
    step_s, floor_s = [], []

    def batches():
        for _ in range(WARM_UP + repeats):
            ask()
            start = time.perf_counter()
            x_BD @ W_FD.T
            floor_s.append(time.perf_counter() - start)
            age_F[dead] = dead_age
            start = time.perf_counter()
            yield x_BD
            step_s.append(time.perf_counter() - start)

    fit(batches())
    return {
        "step_s": statistics.median(step_s[WARM_UP:]),
        "torch_floor_s": statistics.median(floor_s[WARM_UP:]),
    }


if __name__ == "__main__":
    system, d, n, k, batch, dead_fraction, repeats = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # the libraries print

    def ask():
        print("floor", file=answers, flush=True)
        sys.stdin.readline()

    measured = main(system, int(d), int(n), int(k), int(batch), float(dead_fraction), int(repeats), ask)
    print(json.dumps(measured), file=answers)
