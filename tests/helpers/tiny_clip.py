"""A CLIP model of random weights for images of 32 x 32 pixels, in a folder, as a fixture that a conftest.py imports."""

import pathlib

import pytest
import torch
import transformers

from revelio_jax.benchmark import clip_judge

SIDE, WIDTH = 32, 12


@pytest.fixture(scope="session")
def clip_folder(fitted, tmp_path_factory) -> pathlib.Path:
    """The folder of the model; its embeddings have width 12."""
    folder = tmp_path_factory.mktemp("clip")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {"vocab_size": len(fitted), "max_position_embeddings": fitted.model_max_length}
    text |= {"bos_token_id": fitted.bos_token_id, "eos_token_id": fitted.eos_token_id}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=text, vision_config=sizes | {"image_size": SIDE, "patch_size": 8}, projection_dim=WIDTH
    )
    model = transformers.CLIPModel(config)
    for parameter in model.parameters():  # so that images differ
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    fitted.save_pretrained(folder)
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    clip_judge.PROCESSOR(**size).save_pretrained(folder)
    return folder
