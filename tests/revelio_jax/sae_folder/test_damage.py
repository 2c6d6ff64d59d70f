"""An export with a changed byte, or with an edited field that changes latents, is refused with one line."""

import json
import pathlib
import random
import shutil

import numpy as np
import pytest
from safetensors.numpy import load, save

from revelio_jax import checksums
from revelio_jax.errors import InputError
from revelio_jax.export import export
from revelio_jax.sae_folder.reader import read_folder


@pytest.fixture
def folder(trained, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(export(trained), tmp_path / "sae"))


def test_a_changed_byte_of_a_tensor_is_found(folder):
    weights = folder / "sae_weights.safetensors"
    data = weights.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    chance = random.Random(0)
    for place in (chance.randrange(start, len(data)) for _ in range(20)):
        weights.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(InputError, match="is damaged: its tensors do not match their checksum"):
            read_folder(folder)


@pytest.mark.parametrize(("field", "value"), [("k", 4), ("apply_b_dec_to_input", False), ("site", "clip.layer.2")])
def test_an_edited_field_that_changes_latents_is_refused(folder, field, value):
    cfg = json.loads((folder / "cfg.json").read_text())
    section = cfg if field in cfg else cfg["metadata"]
    assert section[field] != value
    section[field] = value
    (folder / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(
        InputError, match=r"cfg\.json does not match sae_weights\.safetensors: it was damaged or edited"
    ):
        read_folder(folder)


def test_other_fields_may_be_edited(folder):
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg["device"] = "cuda"
    cfg["metadata"]["model_id"] = "owner/renamed"
    (folder / "cfg.json").write_text(json.dumps(cfg))
    assert read_folder(folder).metadata["model_id"] == "owner/renamed"


def test_a_folder_without_checksums_is_read(folder):
    from safetensors.numpy import load_file, save_file

    weights = folder / "sae_weights.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})
    cfg = json.loads((folder / "cfg.json").read_text()) | {"k": 4}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    assert read_folder(folder).k == 4


def test_the_same_tensors_give_the_same_bytes():
    """With several entries of metadata, safetensors writes them in a random order."""
    tensors = {"a": np.ones((2, 3), np.float32), "b": np.zeros(5, np.float32)}
    metadata = {name: "ä" + name for name in ("format", "tensors_sha256", "cfg_sha256", "text")}
    files = {checksums.sort_metadata(save(tensors, metadata)) for _ in range(20)}
    assert len(files) == 1
    (data,) = files
    assert (8 + int.from_bytes(data[:8], "little")) % 8 == 0
    for name, array in load(data).items():
        np.testing.assert_array_equal(array, tensors[name])
