"""Fixtures for steering: the miniatures, tiny pipelines of every family, and small random SAEs."""

import contextlib
import copy
import functools
import json
import pathlib
from collections.abc import Iterator

import accelerate
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from revelio_jax.config import RULES
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.families import family_of
from revelio_jax.steering import Steerer
from revelio_jax.steering.rules import FROM_LABELS
from revelio_jax.steering.sae import Sae
from tests.helpers import MINIATURES
from tests.helpers.pipelines import dit, fitted, flux, make_clip, sd, sdxl, t5, vae  # noqa: F401

TEXT_RULES = [rule for rule in RULES if rule not in FROM_LABELS]  # rules that a text without labeled prompts can have
SITE, D, F, K = "clip.layer.2", 128, 64, 8
PROMPTS = ["a flat emoji of cat", "a glossy 3d emoji of red apple"]


@contextlib.contextmanager
def record_outputs(pipe, site: str) -> Iterator[list[torch.Tensor]]:
    """Yield a list that collects the activations of a hook point, after steering, of every pass in the block."""
    point, outputs = hook_points.resolve(pipe, site), []
    # The steering hook is prepended, so this one runs after it.
    handle = point.module.register_forward_hook(lambda _module, _args, out: outputs.append(point.read(out).clone()))
    try:
        yield outputs
    finally:
        handle.remove()


torch.set_num_threads(1)  # more threads only wait for each other on models this small


@pytest.fixture(scope="session")
def miniature():
    """A function that loads a miniature pipeline, each once per session."""

    @functools.cache
    def load(family: str):
        pipe = DiffusionPipeline.from_pretrained(MINIATURES / family, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


@pytest.fixture(scope="session")
def pipe(miniature):
    return miniature("sd")


@pytest.fixture(scope="session")
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(F, D, generator=generator), dim=1)
    return {
        "W_enc": W_dec.T.contiguous(),
        "b_enc": 0.1 * torch.randn(F, generator=generator),
        "W_dec": W_dec,
        "b_dec": torch.randn(D, generator=generator),
    }


@pytest.fixture(scope="session")
def config() -> dict:
    metadata = {"site": SITE, "model_id": "", "family": "sd"}
    return {"architecture": "topk", "d_in": D, "d_sae": F, "k": K, "metadata": metadata}


@pytest.fixture
def sae_folder(tmp_path, tensors, config) -> pathlib.Path:
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture(scope="session")
def make_steerer():
    """A function that makes a steerer with a random SAE for any hook point."""

    def make(pipe, site: str, latents: int = 48, k: int = 6, **metadata) -> Steerer:
        d = sum(part.d for part in hook_points.resolve_joined(pipe, site))
        generator = torch.Generator().manual_seed(d)
        W_dec_FD = torch.nn.functional.normalize(torch.randn(latents, d, generator=generator), dim=1)
        metadata = {"site": site, "model_id": "", "family": family_of(pipe).name, **metadata}
        return Steerer(Sae(W_dec_FD.T, torch.zeros(latents), W_dec_FD, torch.zeros(d), k, metadata))

    return make


@pytest.fixture
def tiny(request):
    """A function that returns the tiny pipeline of a family, without progress bars."""

    def get(family: str):
        pipe = request.getfixturevalue(family)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return get


@pytest.fixture
def own(tiny):
    """Return a function that copies the pipeline of a family, for a test that changes it."""

    def copied(family: str):
        pipe = tiny(family)
        parts = {name: copy.deepcopy(part) for name, part in pipe.components.items()}
        options = {"requires_safety_checker": False} if family == "sd" else {}
        pipe = type(pipe)(**parts, **options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    yield copied
    torch.compiler.reset()


def sequentially(pipe):
    """Offload as enable_sequential_cpu_offload does: weights are on meta except while their module runs."""
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            weights = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
            accelerate.cpu_offload(module, torch.device("cpu"), state_dict=weights)
    assert {parameter.device.type for parameter in pipe.text_encoder.parameters()} == {"meta"}


def by_model(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def in_groups(pipe):
    pipe.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")


OFFLOADS = (sequentially, by_model, in_groups)


@pytest.fixture(scope="session")
def run():
    """A function that samples with a tiny pipeline."""

    @torch.no_grad()
    def run(pipe, prompts=PROMPTS, guided=True, negative=None, n=1, steps=2, **given) -> torch.Tensor:
        """Return the final latents, or the images of a DiT."""
        family = family_of(pipe).name
        count = 2 if family == "dit" else n * (1 if isinstance(prompts, str) else len(prompts))
        given["generator"] = [torch.Generator().manual_seed(i) for i in range(count)]
        given["num_inference_steps"] = steps
        if family == "dit":
            images = pipe(class_labels=[1, 2], guidance_scale=4.0 if guided else 1.0, output_type="np", **given)
            return torch.from_numpy(images.images)
        if family == "flux":
            length = pipe.tokenizer_2.model_max_length
            given |= {"max_sequence_length": length, "true_cfg_scale": 3.0 if guided else 1.0}
            if guided and negative is None:
                negative = "" if isinstance(prompts, str) else [""] * len(prompts)
        else:
            given["guidance_scale"] = 5.0 if guided else 1.0
        given = {"height": 8, "width": 8, "output_type": "latent"} | given
        return pipe(prompts, negative_prompt=negative, num_images_per_prompt=n, **given).images  # fmt: skip

    return run
