"""Stores that are moved, merged, split and read in part."""

import io
import shutil

import numpy as np
import pytest

from revelio_jax.errors import InputError
from revelio_jax.store import SitePlan, StorePlan, StoreWriter, check, copy_store, layout, open_store
from revelio_jax.training.mixture import open_mixture

WIDTHS = {"clip.layer.1": 4, "unet.mid_block": 3}
MODEL = {"id": "m", "fingerprint": "f", "device": "cpu", "dtype": "float32"}


def rows_of(site: str, sample: int, seed: int) -> np.ndarray:
    """Rows [0-4, width] of a sample."""
    return np.random.default_rng([seed, sample, len(site)]).normal(size=(sample % 5, WIDTHS[site])).astype(np.float16)


@pytest.fixture
def memory(tmp_path):
    """A place for stores that no other test uses."""
    return f"memory://{tmp_path.name}"


@pytest.fixture
def write(memory):
    """A function that writes a store of two sites; sample 3 could not be read."""

    def write(name, samples=23, seed=0, dtype="float16", model=MODEL, folder=memory, **extract):
        numbers = np.array_split(np.arange(samples), range(8, samples, 8))
        plans = tuple(
            SitePlan(site, d, tuple(int((shard % 5).sum()) for shard in numbers)) for site, d in WIDTHS.items()
        )
        provenance = {"model": model, "extract": {"sites": list(WIDTHS), **extract}, "input": {"seed": str(seed)}}
        table = [{"id": i, "prompt": f"{name} {i}"} for i in range(samples)]
        writer = StoreWriter(f"{folder}/{name}", StorePlan(plans, dtype, 4, 8, samples, provenance), table)
        for shard, ids in enumerate(numbers):
            sites = {}
            for site in WIDTHS:
                rows = [rows_of(site, i, seed) if i != 3 else rows_of(site, 0, seed) for i in ids]
                sample = np.repeat(ids, [len(each) for each in rows]).astype(np.int32)
                sites[site] = {
                    "activations": np.concatenate(rows),
                    "sample": sample,
                    "position": np.concatenate([np.arange(len(each), dtype=np.int32) for each in rows]),
                    "timestep": sample * 2,
                    "skipped": np.array([3] if 3 in ids else [], np.int32),
                }
            writer.write_shard(shard, sites)
        writer.finish()
        return f"{folder}/{name}"

    return write


def contents(location, site):
    """Return the rows of a site by prompt, with position and timestep."""
    store = open_store(location)
    reader = store.site(site)
    prompts = store.table(["prompt"])["prompt"].to_pylist()
    found = {prompt: [] for prompt in prompts}
    for chunk in reader.chunks:
        index = [reader.read_index(name, *chunk).tolist() for name in layout.INDEX_ARRAYS]
        for row, sample, *rest in zip(reader.read(*chunk).tolist(), *index, strict=True):
            found[prompts[sample]].append((row, *rest))
    return found


def is_intact(location) -> bool:
    return not [fault for _, fault in check.faults(check.read_state(location)) if fault]


@pytest.mark.parametrize("samples", [None, range(20, 30), [0, 3, 7, 8, 22, 23, 26, 40], [5]], ids=str)
def test_a_copy_has_the_chosen_rows_of_all_stores(write, memory, samples):
    stores = [write("a"), write("b", samples=18, seed=1)]
    copy = copy_store(stores, f"{memory}/copy", samples=samples)
    chosen = range(41) if samples is None else samples
    assert is_intact(copy.location)
    assert [each["id"] for each in copy.samples] == list(range(len(chosen)))
    for site in WIDTHS:
        both = [*contents(stores[0], site).items(), *contents(stores[1], site).items()]
        assert list(contents(copy.location, site).items()) == [both[i] for i in chosen]
        skipped = copy.manifest["sites"][site].get("skipped", [])
        assert skipped == [new for new, old in enumerate(chosen) if old in (3, 26)]


def test_parts_of_a_store_are_read_as_one_and_merge_to_the_store(write, tmp_path):
    whole = write("a")
    parts = [
        copy_store([whole], str(tmp_path / f"part_{i}"), samples=half)
        for i, half in enumerate([range(9), range(9, 23)])
    ]
    mixture = open_mixture([f"{tmp_path}/part_*"])
    site = open_store(whole).site()
    assert mixture.rows == site.rows
    np.testing.assert_allclose(mixture.mean, site.mean, rtol=1e-12)
    merged = copy_store([part.location for part in parts], f"{tmp_path}/merged")
    for name in WIDTHS:
        assert contents(merged.location, name) == contents(whole, name)
        one, two = merged.site(name), open_store(whole).site(name)
        np.testing.assert_array_equal(one.mean, two.mean)
        assert one.chunks == two.chunks


def test_one_hook_point_is_copied(write, memory):
    copy = copy_store([write("a")], f"{memory}/copy", sites=["unet.mid_block"])
    assert copy.site_names == ("unet.mid_block",)
    assert copy.manifest["extract"]["sites"] == ["unet.mid_block"]
    assert copy.fingerprint != open_store(f"{memory}/a").fingerprint


def test_a_stopped_copy_continues_and_another_one_is_refused(write, memory, monkeypatch):
    source, target = write("a"), f"{memory}/copy"
    real, written = StoreWriter.write_shard, []

    def stop_once(self, index, sites):
        if written == [0]:
            written.append("stop")
            raise KeyboardInterrupt
        real(self, index, sites)
        written.append(index)

    monkeypatch.setattr(StoreWriter, "write_shard", stop_once)
    with pytest.raises(KeyboardInterrupt):
        copy_store([source], target)
    copy_store([source], target)
    assert written == [0, "stop", 1, 2]
    assert contents(target, "clip.layer.1") == contents(source, "clip.layer.1")
    with pytest.raises(InputError, match=r"copy was made with .*; choose another"):
        copy_store([source], target, samples=range(4))


def test_saved_images_and_latents_are_copied(write, memory):
    source = write("a", save_images=True, save_latents=True)
    kvstore = layout.open_kvstore(source)
    for i in range(23):
        kvstore.write(layout.image_key(i), f"image {i}".encode()).result()
        file = io.BytesIO()
        np.save(file, np.full(2, i))
        kvstore.write(layout.latents_key(i), file.getvalue()).result()
    copy = copy_store([source], f"{memory}/copy", samples=[4, 9, 22])
    assert [copy.kvstore.read(layout.image_key(i)).result().value for i in range(3)] == [
        b"image 4",
        b"image 9",
        b"image 22",
    ]
    assert np.load(io.BytesIO(copy.kvstore.read(layout.latents_key(2)).result().value)).tolist() == [22, 22]
    assert not copy.kvstore.read(layout.image_key(3)).result().value


def test_stores_that_do_not_belong_together_are_refused_before_anything_is_written(write, memory):
    first = write("a")

    def refused(match, *others, **options):
        with pytest.raises(InputError, match=match) as caught:
            copy_store([first, *others], f"{memory}/copy", **options)
        assert "\n" not in str(caught.value)
        assert not layout.open_kvstore(f"{memory}/copy").list().result()

    refused(
        "weights was extracted from .*'g'.*all must have the same model",
        write("weights", model=MODEL | {"fingerprint": "g"}),
    )
    refused("wide has dtype 'float32', .*/a has 'float16'", write("wide", dtype="float32"))
    refused("other has config.extract.value 'difference', .*/a has None", write("other", value="difference"))
    refused("has the same rows as a store before it", first)
    refused("it does not exist", f"{memory}/gone")
    refused("samples must be whole numbers", samples=[1.5])
    refused(r"/a has no x; it has clip\.layer\.1, unet\.mid_block", sites=["x"])
    refused("sources and sites must be lists", sites="x")
    for samples in ([2, 1], [1, 1], [23], [-1], range(0)):
        refused("samples (must be whole numbers from 0 to 22|is empty)", samples=samples)


def test_a_model_may_have_been_moved_or_run_on_another_device(write, memory):
    moved = write("moved", seed=1, model=MODEL | {"id": "/elsewhere/m", "device": "cuda"})
    stores = [write("a"), moved]
    assert open_mixture(stores).rows == copy_store(stores, f"{memory}/copy").site().rows
    different = write("different", seed=2, value="difference")
    with pytest.raises(
        InputError, match=r"different was extracted with config\.extract\.value=difference, but .*/a with None"
    ):
        open_mixture([stores[0], different])


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_a_moved_store_is_the_same_store(write, memory, tmp_path, place):
    location = write("a", folder=str(tmp_path))
    rows, fingerprint = contents(location, "clip.layer.1"), open_mixture([location]).fingerprint
    if place == "folder":
        moved = str(tmp_path / "elsewhere" / "renamed")
        shutil.move(location, moved)
    else:  # as copied to object storage by any tool
        moved = f"{memory}/moved/"
        kvstore = layout.open_kvstore(moved)
        for path in (tmp_path / "a").rglob("*"):
            if path.is_file():
                kvstore.write(str(path.relative_to(tmp_path / "a")), path.read_bytes()).result()
        shutil.rmtree(location)
    assert open_mixture([moved]).fingerprint == fingerprint
    assert contents(moved, "clip.layer.1") == rows
    assert is_intact(moved)


def test_a_store_with_the_folder_of_one_hook_point_works_for_it(write, tmp_path):
    store = open_store(write("a", folder=str(tmp_path)))
    rows = contents(store.location, "unet.mid_block")
    shutil.rmtree(tmp_path / "a" / "clip.layer.1")
    assert contents(store.location, "unet.mid_block") == rows
    assert open_mixture([store.location], "unet.mid_block").name == "unet.mid_block"
    with pytest.raises(
        InputError, match=r"a lists clip\.layer\.1 but has no files of it, only of unet\.mid_block; set"
    ):
        open_mixture([store.location])
