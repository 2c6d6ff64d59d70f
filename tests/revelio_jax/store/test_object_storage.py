"""Stores on a real S3 server: the same bytes as on a disk, range reads only, and failures that are repeated."""

import collections
import pathlib

import numpy as np
import pytest

from revelio_jax.errors import EnvironmentFailure, InputError, report_errors
from revelio_jax.store import check, layout, object_storage, open_store
from revelio_jax.training import loader
from revelio_jax.training.mixture import open_mixture
from tests.helpers.s3 import once_each, s3, s3_server, use  # noqa: F401

CHUNK = 32 * 16 * 4  # bytes of the activations of a chunk, without its checksum


@pytest.fixture(scope="session")
def remote(s3_server, planted, write_store):  # noqa: F811
    """The location of a store on the server."""
    server, port = s3_server
    with pytest.MonkeyPatch.context() as patch:
        use(patch, port)
        server.requests.clear()
        write_store("s3://bucket/stores/planted", planted)
        return "s3://bucket/stores/planted", list(server.requests)


def stored(location: str) -> dict[str, bytes]:
    kvstore = layout.open_kvstore(location)
    keys = [key.decode() for key in kvstore.list().result()]
    return {key: kvstore.read(key).result().value for key in keys if not key.startswith(".locks")}


def test_the_store_has_the_bytes_of_a_store_on_disk(s3, remote, store):  # noqa: F811
    local, there = stored(store), stored(remote[0])
    assert local.keys() == there.keys()
    assert not [key for key in local if local[key] != there[key]]
    assert open_store(remote[0]).fingerprint == open_store(store).fingerprint


def test_each_file_is_written_once(remote):
    _, requests = remote
    writes = collections.Counter(request.key for request in requests if request.method == "PUT")
    assert set(writes.values()) == {1}
    # No shard is read back before it is written.
    assert not [each for each in requests if each.method == "GET" and "/c/" in each.key]


def test_chunks_are_read_by_ranges(s3, remote, planted):  # noqa: F811
    opened = open_store(remote[0])
    s3.requests.clear()
    site = opened.site()
    assert s3.counts() == {"GET": 6}  # activations and sample are opened with and without the fill value
    s3.requests.clear()
    rows = np.concatenate([site.read(*chunk) for chunk in site.chunks])
    np.testing.assert_array_equal(rows, planted)
    # For each chunk the index of its shard, at the end of the file, and the chunk.
    assert s3.counts() == {"GET": 2 * len(site.chunks)}
    ranges = [each.range.removeprefix("bytes=").split("-") for each in s3.requests]
    sizes = collections.Counter(int(stop) - int(start) + 1 if start else int(stop) for start, stop in ranges)
    assert sizes == {16 * 16 + 4: len(site.chunks), CHUNK + 4: len(site.chunks)}  # both with a checksum


@pytest.mark.parametrize("fault", ["503", "cut", 0.05])
def test_failed_and_slow_requests_are_repeated(s3, remote, planted, fault):  # noqa: F811
    failed = set()
    s3.fault = once_each(fault, failed)
    mixture = open_mixture((remote[0],))
    order = loader.make_order(mixture, 0, 64, 24, 0.1, 1)
    batches = loader.batches(mixture, order, 0)
    rows = [next(batches) for _ in range(3)]
    batches.close()
    assert len([request for request in failed if request.range]) > 10
    s3.fault = lambda request: None
    expected = loader.batches(mixture, order, 0)
    for batch in rows:
        np.testing.assert_array_equal(batch, next(expected))
    expected.close()


def test_failed_writes_are_repeated(s3, planted, write_store):  # noqa: F811
    s3.fault = once_each("503")
    location = write_store("s3://bucket/stores/throttled", planted[:1024])
    s3.fault = lambda request: None
    np.testing.assert_array_equal(open_store(location).site().read(0, 1024), planted[:1024])
    assert not any(fault for _, fault in check.faults(check.read_state(location)))


def test_a_killed_writer_continues(s3, planted, write_store):  # noqa: F811
    location = write_store("s3://bucket/stores/killed", planted[:2048], finish=False)
    kvstore = layout.open_kvstore(location)
    kvstore.write(layout.shard_key(2), None).result()
    with pytest.raises(InputError, match="is unfinished; run the same extract command again"):
        open_store(location)
    assert check.read_state(location).done == {0, 1, 3}
    write_store(location, planted[:2048])
    assert stored(location).keys() == stored(write_store("s3://bucket/stores/whole", planted[:2048])).keys()
    assert not any(fault for _, fault in check.faults(check.read_state(location)))


def test_a_server_that_keeps_refusing_is_one_line(s3, remote, planted, write_store, capsys):  # noqa: F811
    site = open_store(remote[0]).site()
    s3.fault = lambda request: "503"
    with pytest.raises(SystemExit) as stop, report_errors():
        site.read(*site.chunks[0])
    assert stop.value.code == 1
    line = capsys.readouterr().err
    assert line.startswith("error: store s3://bucket/stores/planted: shard 0 of clip.layer.1 cannot be read; ")
    assert "retry attempts failed" in line
    assert line.count("\n") == 1
    with pytest.raises((EnvironmentFailure, InputError), match="retry attempts failed"):
        write_store("s3://bucket/stores/refused", planted[:512])


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("s3://bucket/none", "it does not exist; revelio extract writes it"),
        ("s3://B/none", "Invalid S3 bucket name"),
    ],
)
def test_wrong_locations_are_one_line(s3, location, message):  # noqa: F811
    with pytest.raises(InputError, match=message) as error:
        open_store(location)
    assert "\n" not in str(error.value)


def test_a_missing_bucket_is_one_line(s3, planted, write_store):  # noqa: F811
    with pytest.raises(InputError, match="s3://nowhere/store"):
        write_store("s3://nowhere/store", planted[:512])


def test_settings_of_the_environment(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    plain = {"driver": "s3", "bucket": "b", "path": "a/c/"}
    assert object_storage.spec("s3://b/a/c/") == plain
    assert object_storage.spec("gs://b/a/") == "gs://b/a/"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://one/")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert object_storage.spec("s3://b/a/c/") == plain | {"endpoint": "http://one", "aws_region": "eu-west-1"}
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://two")
    assert object_storage.spec("s3://b/")["endpoint"] == "http://two"


def test_urls(s3, tmp_path: pathlib.Path):  # noqa: F811
    assert object_storage.url_of(layout.open_kvstore("s3://bucket/a b/c")) == "s3://bucket/a b/c/"
    assert object_storage.url_of(layout.open_kvstore(str(tmp_path))) == f"file://{tmp_path}/"
