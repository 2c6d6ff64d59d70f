"""Checkpoints of other methods: folders, and files of one or several components, whole or partial."""

import copy
import pathlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from revelio_jax.errors import InputError
from revelio_jax.pipelines.sampling import sample
from tests.helpers import MINIATURES
from tests.revelio_jax.baselines.conftest import PROMPTS, SAMPLING, SEEDS


def changed(module: torch.nn.Module, only: str = "") -> dict[str, torch.Tensor]:
    """Return a state dict of a module with noise on the tensors whose names contain ``only``."""
    random = torch.Generator().manual_seed(0)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for name, tensor in state.items():
        if only in name and tensor.is_floating_point():
            tensor += 0.2 * torch.randn(tensor.shape, generator=random)
    return state


def images_with(pipe, **states) -> np.ndarray:
    """Return images of a copy of the pipeline with other weights of its components."""
    parts = dict(pipe.components)
    for name, state in states.items():
        parts[name] = copy.deepcopy(parts[name])
        parts[name].load_state_dict(state)
    other = type(pipe)(**parts, requires_safety_checker=False)
    return sample(other, PROMPTS, SEEDS, **SAMPLING).images


@pytest.fixture
def written(tmp_path):
    def write(tensors, name="erased.safetensors") -> str:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        return str(file)

    return write


def test_a_file_replaces_the_unet_in_the_block_only(sd, run, written):
    plain, state = run("plain", sd), changed(sd.unet)
    images = run("checkpoint", sd, path=written(state))
    np.testing.assert_array_equal(images, images_with(sd, unet=state))
    assert (images != plain).any()
    np.testing.assert_array_equal(run("plain", sd), plain)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_a_text_encoder_has_the_names_of_any_version(sd, run, written, prefix):
    state = changed(sd.text_encoder)
    bare = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    named = {prefix + name: tensor for name, tensor in bare.items()}
    named[f"{prefix}embeddings.position_ids"] = torch.arange(20)[None]
    images = run("checkpoint", sd, path=written(named))
    np.testing.assert_array_equal(images, images_with(sd, text_encoder=state))


def test_a_file_of_two_components_replaces_both(sd, run, written):
    states = {"unet": changed(sd.unet), "text_encoder": changed(sd.text_encoder)}
    tensors = {f"{part}.{name}": tensor for part, state in states.items() for name, tensor in state.items()}
    np.testing.assert_array_equal(run("checkpoint", sd, path=written(tensors)), images_with(sd, **states))


def test_some_tensors_replace_only_themselves_if_the_settings_allow_it(sd, run, written):
    state = changed(sd.unet, only="attn2")
    file = written({name: tensor for name, tensor in state.items() if "attn2" in name})
    with pytest.raises(InputError, match=r"lacks \d+ of the \d+ tensors of the unet, such as .*; if it is meant"):
        run("checkpoint", sd, path=file)
    images = run("checkpoint", sd, path=file, partial=True)
    np.testing.assert_array_equal(images, images_with(sd, unet=state))


def test_a_folder_of_one_component_is_read_without_its_variants(sd, run, written, tmp_path):
    state = changed(sd.unet)
    written(state, "unet/diffusion_pytorch_model.safetensors")
    written(changed(sd.unet, only="conv"), "unet/diffusion_pytorch_model.fp16.safetensors")
    images = run("checkpoint", sd, path=str(tmp_path / "unet"))
    np.testing.assert_array_equal(images, images_with(sd, unet=state))


def test_a_pipeline_folder_is_loaded(sd, run, tmp_path):
    state = changed(sd.unet)
    other = type(sd)(**sd.components, requires_safety_checker=False)
    other.unet = copy.deepcopy(sd.unet)
    other.unet.load_state_dict(state)
    other.save_pretrained(tmp_path / "esd")
    plain = run("plain", sd)
    images = run("checkpoint", sd, path=str(tmp_path / "esd"))
    np.testing.assert_array_equal(images, images_with(sd, unet=state))
    np.testing.assert_array_equal(run("plain", sd), plain)


def test_a_pipeline_folder_of_another_family_is_refused(sd, run):
    with pytest.raises(InputError, match="a pipeline of the family flux; it must be sd"):
        run("checkpoint", sd, path=str(MINIATURES / "flux"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {f"lora.{name}": tensor for name, tensor in state.items()}, r"none of its \d+ tensors"),
        (lambda state: state | {"extra.weight": torch.zeros(1)}, "1 of its .*, such as extra.weight, are not part of"),
        (lambda state: state | {"conv_in.bias": torch.zeros(3)}, r"conv_in.bias has the shape \[3\].*needs \[8\]"),
        (lambda state: state | {"conv_in.bias": torch.zeros(8, dtype=torch.int32)}, "conv_in.bias is torch.int32"),
        (lambda _state: {}, "none of its 0 tensors"),
    ],
)
def test_wrong_tensors_are_one_line(sd, run, written, change, message):
    plain = run("plain", sd, PROMPTS[:1], SEEDS[:1])
    with pytest.raises(InputError, match=message):
        run("checkpoint", sd, path=written(change(sd.unet.state_dict())))
    np.testing.assert_array_equal(run("plain", sd, PROMPTS[:1], SEEDS[:1]), plain)


def test_files_that_cannot_be_read_are_one_line(sd, run, tmp_path):
    file = tmp_path / "broken.safetensors"
    file.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"broken.safetensors cannot be read"):
        run("checkpoint", sd, path=str(file))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"must contain model_index.json or .safetensors files"):
        run("checkpoint", sd, path=str(tmp_path / "empty"))


def test_a_tied_tensor_needs_one_of_its_names(flux, run, written):
    state = changed(flux.text_encoder_2)
    assert {"shared.weight", "encoder.embed_tokens.weight"} <= state.keys()
    del state["encoder.embed_tokens.weight"]
    plain = run("plain", flux, PROMPTS[:1], SEEDS[:1])
    before = flux.text_encoder_2.shared.weight.clone()
    assert (run("checkpoint", flux, PROMPTS[:1], SEEDS[:1], path=written(state)) != plain).any()
    assert torch.equal(flux.text_encoder_2.shared.weight, before)


def test_a_file_twice_in_a_folder_is_refused(sd, run, written):
    file = pathlib.Path(written(changed(sd.unet), "twice/a.safetensors"))
    (file.parent / "b.safetensors").write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="several files have the tensor"):
        run("checkpoint", sd, path=str(file.parent))
