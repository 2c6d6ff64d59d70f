"""Time train steps of one library, for train_step.py. Runs in the peers' venv.

.venv-peers/bin/python tests/benchmarks/in_peers.py SYSTEM D LATENTS K BATCH DEAD_FRACTION REPEATS

The library's own training loop runs on an iterator that repeats one batch; train_in_peers.py runs the same loops on
real batches. A step is what the loop does between two requests for a batch. Between two steps this script prints the
line "floor" and waits for a line, while train_step.py times JAX's product; then it times torch's product. The last
line that it prints is {step_s, torch_floor_s}, medians as JSON.
"""

import contextlib
import json
import os
import statistics
import sys
import time
import typing
from collections.abc import Callable, Iterator

import torch
from learning import Learning
from torch import nn

WARM_UP = 2  # untimed steps: allocations, initial biases, Adam's moments
MANY = 1_000_000  # steps to configure; the end of the batches ends the loop


class Library(typing.NamedTuple):
    """A configured library. ``fit`` runs its loop over batches.

    ``W_enc_FD`` are the encoder's weights as rows. ``age_F`` counts how long each latent has been silent; the library
    treats a latent as dead at ``dead_age``. ``run`` returns the reconstruction and the latents [B, F] of rows [B, D].
    ``W_dec_FD`` returns the current decoder weights as rows.
    """

    fit: Callable[[Iterator[torch.Tensor]], None]
    W_enc_FD: torch.Tensor
    age_F: torch.Tensor
    dead_age: int
    run: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    W_dec_FD: Callable[[], torch.Tensor]


# Each library is imported only when it is used, since nnsight, which dictionary_learning imports, patches torch.
# Without ``learning``, rates and windows are the library's defaults.


def sae_lens(d: int, n: int, k: int, batch: int, learning: Learning | None = None) -> Library:
    """Set up SAETrainer.fit with its defaults: AuxK, latents scaled by decoder norms, clipping, Adam."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=n, k=k))
    steps, settings = MANY, {}
    if learning:
        steps = learning.steps
        settings = {
            "lr": learning.learning_rate,
            "lr_warm_up_steps": learning.warm_up,
            "lr_decay_steps": steps - learning.warm_up,
            "dead_feature_window": learning.dead_after_rows // batch,
        }
    options = SAETrainerConfig(steps * batch, train_batch_size_samples=batch, lr_end=3e-5, **settings)
    trainer = SAETrainer(options, sae, data_provider=iter(()))

    def fit(batches):
        trainer.data_provider = batches
        with contextlib.suppress(StopIteration):
            trainer.fit()

    def run(x_BD):
        z_BF = sae.encode(x_BD)
        return sae.decode(z_BF), z_BF

    age_F, dead_age = trainer.n_forward_passes_since_fired, 2 * options.dead_feature_window
    return Library(fit, sae.W_enc.data.T, age_F, dead_age, run, lambda: sae.W_dec.data)


def dictionary_learning(d: int, n: int, k: int, batch: int, learning: Learning | None = None) -> Library:
    """Set up trainSAE, which calls TopKTrainer.update, with its defaults: AuxK, unit norms, clipping, Adam."""
    from dictionary_learning.trainers.top_k import TopKTrainer
    from dictionary_learning.training import trainSAE

    steps, settings = MANY, {}
    if learning:
        steps, settings = learning.steps, {"lr": learning.learning_rate, "warmup_steps": learning.warm_up}
        settings["decay_start"] = learning.warm_up + 1  # the library refuses an earlier step
    settings |= {"layer": 0, "lm_name": "", "device": "cpu"}
    trainer = TopKTrainer(steps=steps, activation_dim=d, dict_size=n, k=k, **settings)
    if learning:
        trainer.dead_feature_threshold = learning.dead_after_rows

    def fit(batches):
        trainSAE(batches, [{"trainer": lambda: trainer}], steps=steps, device="cpu")

    def run(x_BD):
        return trainer.ae(x_BD, output_features=True)

    age_F, dead_age = trainer.num_tokens_since_fired, 2 * trainer.dead_feature_threshold
    ae = trainer.ae
    return Library(fit, ae.encoder.weight.data, age_F, dead_age, run, lambda: ae.decoder.weight.data.T)


def sparsify(
    d: int, n: int, k: int, batch: int, learning: Learning | None = None, device: str | torch.device = "cpu"
) -> Library:
    """Set up Trainer.fit with a unit-norm decoder, AuxK at 1/32 and Adam, which are not its defaults.

    The trainer reads activations from a running language model. Here the model has one layer, which gives the batch.
    """
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    model_device = torch.device(device)

    class Model(nn.Module):
        device = model_device
        dummy_inputs = {"input_ids": torch.zeros(1, batch, dtype=torch.long)}  # noqa: RUF012

        def __init__(self):
            super().__init__()
            self.layer, self.x_BD = nn.Identity(), torch.zeros(batch, d, device=device)

        @property
        def base_model(self):
            return self

        def forward(self, input_ids):
            return self.layer(self.x_BD[None])

    class Texts(torch.utils.data.IterableDataset):
        def __len__(self):
            return learning.steps if learning else MANY

        def __iter__(self):
            for model.x_BD in self.batches:
                yield {"input_ids": model.dummy_inputs["input_ids"][0]}

    model, texts = Model(), Texts()
    coder = SparseCoderConfig(num_latents=n, k=k)
    settings = {}
    if learning:  # the rate always decays to 0 after the warm-up
        settings = {
            "lr": learning.learning_rate,
            "lr_warmup_steps": learning.warm_up,
            "dead_feature_threshold": learning.dead_after_rows,
            "init_seeds": [learning.seed],
        }
    options = TrainConfig(
        coder,
        batch_size=1,
        optimizer="adam",
        auxk_alpha=1 / 32,
        hookpoints=["layer"],
        log_to_wandb=False,
        **settings,
    )
    trainer = Trainer(options, texts, model)
    trainer.save = lambda: None  # the trainer saves every 1000 steps and at the end

    def fit(batches):
        texts.batches = batches
        trainer.fit()

    coder = trainer.saes["layer"]

    def run(x_BD):
        out = coder(x_BD)
        return out.sae_out, torch.zeros(len(x_BD), n).scatter_(1, out.latent_indices, out.latent_acts)

    age_F, dead_age = trainer.num_tokens_since_fired["layer"], 2 * options.dead_feature_threshold
    return Library(fit, coder.encoder.weight.data, age_F, dead_age, run, lambda: coder.W_dec.data)


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
    time_floor: Callable[[], None],
) -> dict[str, float]:
    """Return medians over ``repeats`` steps; ``time_floor`` is called before each."""
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    x_BD, W_FD = torch.randn(batch, d), torch.randn(n, d)
    library = LIBRARIES[system](d, n, k, batch)
    dead = torch.randperm(n)[: round(dead_fraction * n)]
    library.W_enc_FD[dead] *= 0.1  # never among the k largest, so dead
    step_s, floor_s = [], []

    def batches():
        for _ in range(WARM_UP + repeats):
            time_floor()
            start = time.perf_counter()
            x_BD @ W_FD.T
            floor_s.append(time.perf_counter() - start)
            library.age_F[dead] = library.dead_age
            start = time.perf_counter()
            yield x_BD
            step_s.append(time.perf_counter() - start)

    library.fit(batches())
    return {
        "step_s": statistics.median(step_s[WARM_UP:]),
        "torch_floor_s": statistics.median(floor_s[WARM_UP:]),
    }


if __name__ == "__main__":
    system, d, n, k, batch, dead_fraction, repeats = sys.argv[1:]
    output, sys.stdout = sys.stdout, sys.stderr  # the libraries print to stdout

    def time_floor():
        print("floor", file=output, flush=True)
        sys.stdin.readline()

    times = main(system, int(d), int(n), int(k), int(batch), float(dead_fraction), int(repeats), time_floor)
    print(json.dumps(times), file=output)
