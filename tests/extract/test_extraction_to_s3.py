"""Extraction to a real S3 server."""

import pytest

from revelio_jax.store import layout
from tests.helpers.extraction import read_files, run_extract
from tests.helpers.s3 import once_each, s3, s3_server  # noqa: F401


@pytest.mark.slow
def test_the_store_has_the_bytes_of_a_store_on_disk(s3, text_config, tmp_path, capsys):  # noqa: F811
    run_extract(text_config)
    s3.fault = once_each("503")
    run_extract(text_config, extract__store="s3://bucket/stores/extracted")
    s3.fault = lambda request: None
    kvstore = layout.open_kvstore("s3://bucket/stores/extracted")
    keys = [key.decode() for key in kvstore.list().result()]
    assert {key: kvstore.read(key).result().value for key in keys} == read_files(tmp_path / "store")
    capsys.readouterr()
    run_extract(text_config, extract__store="s3://bucket/stores/extracted")
    assert "is already complete" in capsys.readouterr().out
