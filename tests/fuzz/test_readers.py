"""Readers of untrusted files raise only InputError, and need little memory, for mutated files and known attacks."""

import json
import random
import resource
import struct
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revelio_jax import cli, json_text
from revelio_jax.config import Config, resolve, schema
from revelio_jax.errors import InputError, single_line
from tests.fuzz import mutations, run, targets

MUTATED = 25  # files per reader; tests.fuzz.run tries many more
NAMES = (
    *("command_line", "config_json", "cfg_json", "sparsify_cfg", "safetensors", "manifest", "plan", "marker"),
    *("zarr_json", "zarr_index_json", "shard", "samples_parquet", "image", "model_index"),
    *("prompts_txt", "prompts_csv", "prompts_jsonl", "prompts_parquet", "prompt_set"),
)
MEMORY = 400 << 10  # KiB

pytest.importorskip("torch", reason="torch is not installed")


@pytest.fixture(scope="module")
def readers():
    with targets.in_temporary_folder() as found, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield found


def test_all_readers_are_named(readers):
    assert set(readers) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_valid_files_are_read_and_mutated_ones_are_read_or_refused(readers, name):
    for data in readers[name].seeds:
        assert targets.run(readers[name], data)
    draw = random.Random(name)
    for _ in range(MUTATED):
        targets.run(readers[name], mutations.mutate(draw.choice(readers[name].seeds), draw))


# Files that claim more than they have, or are nested deeply.
DEEP = b"[" * 100_000 + b"]" * 100_000
ATTACKS = {
    "config_json": (b'{"train": ' + DEEP + b"}", b'{"train": {"steps": 1e999}}', b'{"run": "a", "run": "b"}', b"\xff"),
    "cfg_json": (DEEP, b'{"d_in": 4, "d_in": 5}', b'{"d_in": NaN}', b'{"d_in": ' + b"9" * 4000 + b"}", b'"\\ud800"'),
    "safetensors": (
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2**64 - 1),
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 200_000) + DEEP,
        *(
            struct.pack("<Q", len(header)) + header
            for header in (
                b'{"W_enc":{"dtype":"F32","shape":[1000000000000000,8],"data_offsets":[0,32000000000000000]}}',
                b'{"W_enc":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}',
                b'{"W_enc":{"dtype":"F32","shape":[4,8],"data_offsets":[0,128]},"W_enc":{}}',
            )
        ),
    ),
    "manifest": (DEEP, b"[]", b"null", b'{"format_version": 1}', b'{"format_version": NaN}', b'{"a": 1, "a": 2}'),
    "prompts_jsonl": (b'{"prompt": "a", "x": ' + DEEP + b"}", b'{"prompt": "a", "prompt": "b"}', b'{"prompt": NaN}'),
    "samples_parquet": (b"", b"PAR1", b"PAR1" + b"\xff" * 99 + b"PAR1"),
    "model_index": (DEEP, b"{}", b'{"_class_name": []}', b'{"_class_name": [["a"]]}'),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_known_attacks_are_refused_with_little_memory(readers, name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in ATTACKS[name]:
        assert not targets.run(readers[name], data), data[:80]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


@pytest.mark.parametrize("file", ["activations", "sample"])
@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10**15, 4]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**15, 4]}}},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip"}]},
        {"data_type": "float64"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_array_that_claims_huge_chunks_is_refused(readers, file, change):
    """A larger shape is harmless: only the rows of the manifest are read."""
    target = readers["zarr_json" if file == "activations" else "zarr_index_json"]
    metadata = json.loads(target.seeds[0])
    if file == "sample" and "shape" in change:
        change = {"shape": [10**15]}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert targets.run(target, json.dumps(metadata | change).encode()) == ("shape" in change)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


@settings(max_examples=60)
@given(st.binary(max_size=60) | st.text('{}[]":,.0123456789-eE\\udNaflstr \ud800', max_size=60))
def test_any_text_is_json_or_a_value_error(text):
    try:
        value = json_text.parse(text)
    except ValueError:
        return
    assert json_text.parse(json.dumps(value, allow_nan=False, ensure_ascii=False).encode()) == value


TEXTS = (
    st.sampled_from(mutations.TEXTS)
    | st.text("a0-.,e\0\ud800[]('", max_size=8)
    | st.sampled_from(mutations.NUMBERS[:8]).map(str)
)


@settings(max_examples=100)
@given(st.sampled_from(schema.field_names()), TEXTS)
def test_any_text_of_a_field_gives_a_config_or_its_name(name, text):
    """As ``--config.NAME=TEXT``, and then as the value in a config.json; an accepted config is read back equal."""
    section, _, key = name.rpartition(".")
    config, message = None, ""
    try:
        value = cli.parse_value(f"config.{name}", text, schema.field_spec(name)[0])
        config = resolve({section: {key: value}} if section else {key: value})
    except InputError as error:
        message = single_line(str(error))
    if config is None:
        assert f"config.{name}" in message
        assert len(message) < 12_000
        return
    assert resolve(json_text.parse(config.to_json())) == config
    assert isinstance(config, Config)


def test_a_failing_reader_is_reported(tmp_path, capsys):
    def fails(data: bytes) -> None:
        if len(data) > 3:
            raise KeyError("x")

    counts = run.fuzz(targets.Target(fails, (b"abc",)), 0.2, 0, tmp_path)
    assert counts["failed"] == 1
    assert counts["tried"] > counts["accepted"] > 0
    assert "KeyError" in capsys.readouterr().err
    (file,) = tmp_path.iterdir()
    assert len(file.read_bytes()) > 3
