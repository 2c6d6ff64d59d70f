"""The file of embeddings, and folders that hold no model."""

import numpy as np
import pytest

from revelio_jax.errors import InputError
from revelio_jax.interpret.embeddings import embedding_file


def test_folders_without_a_model_or_without_safetensors_are_refused(tmp_path):
    with pytest.raises(InputError, match="must be the folder of a model"):
        embedding_file.fingerprint(str(tmp_path))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        (pickled / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"must be in a \.safetensors file"):
        embedding_file.fingerprint(str(pickled))


def test_embeddings_of_another_store_or_model_are_not_read(tmp_path):
    path, embedding = tmp_path / embedding_file.NAME, np.array([[1, 2], [np.nan, 3]], np.float32)
    assert embedding_file.read(path, "store", "model") is None
    embedding_file.write(path, embedding, "store", "model")
    np.testing.assert_array_equal(embedding_file.read(path, "store", "model"), embedding)
    assert embedding_file.read(path, "other", "model") is None
    assert embedding_file.read(path, "store", "other") is None
    path.write_bytes(path.read_bytes()[:40])
    assert embedding_file.read(path, "store", "model") is None
