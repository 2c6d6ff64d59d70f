"""Extraction that is killed at named places writes the store of an uninterrupted run when it runs again."""

import pytest

from tests.helpers.extraction import read_files, run_extract
from tests.helpers.kills import Place

PLACES = [
    Place("rename", 1, "/plan.json"),  # start-up
    Place("write", 1, "/samples.parquet"),
    Place("revelio_jax.store.writer:StoreWriter.write_shard", 2),  # computing
    Place("write", 1, "/activations/c/"),  # writing
    Place("rename", 1, "/activations/c/"),  # renaming
    Place("rename", 1, "/shards/"),
    Place("rename", 1, "/manifest.json"),
]


@pytest.mark.slow
def test_an_extraction_killed_at_every_place_writes_the_same_store(text_config, kill_server, tmp_path):
    server = kill_server("extract.run", "extract.text_encoder", "transformers.models.clip.modeling_clip")
    arguments = ["--config", str(text_config)]
    for place in PLACES:
        server.kill(arguments, place)
        assert not (tmp_path / "store/manifest.json").exists()
    assert server.run(arguments) == 0
    run_extract(text_config, extract__store=tmp_path / "whole")
    assert read_files(tmp_path / "store") == read_files(tmp_path / "whole")
