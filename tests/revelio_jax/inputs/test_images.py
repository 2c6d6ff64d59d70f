"""Images of folders and datasets: their selection, order, labels and crop."""

import importlib.util
import io
import os
import struct
import subprocess
import zlib

import numpy as np
import PIL.Image
import pytest

from revelio_jax.errors import InputError
from revelio_jax.inputs.images import open_image, read_images


def read(location, image_column="image", label_column="label", split="train"):
    return read_images(str(location), image_column, label_column, split)


def test_folders_are_labels(image_folder):
    images = read(image_folder)
    assert images.samples == [
        {"id": 0, "image": "cat/a.png", "label": "cat"},
        {"id": 1, "image": "cat/b.png", "label": "cat"},
        {"id": 2, "image": "cat/c.png", "label": "cat"},
        {"id": 3, "image": "dog/a.jpg", "label": "dog"},
        {"id": 4, "image": "dog/b.png", "label": "dog"},
    ]
    (loaded,) = images.batches([range(5)], 8, 16)
    assert [pixels is None for pixels in loaded] == [False, True, False, False, False]
    assert {pixels.shape for pixels in loaded if pixels is not None} == {(3, 8, 16)}
    assert {pixels.dtype for pixels in loaded if pixels is not None} == {np.dtype(np.float32)}


def test_a_flat_folder_has_no_labels(image_folder):
    assert read(image_folder / "dog").samples == [{"id": 0, "image": "a.jpg"}, {"id": 1, "image": "b.png"}]


def test_an_image_is_scaled_to_cover_and_cropped_at_its_center(tmp_path):
    """Of three stripes, 10, 20 and 10 pixels wide, only the middle one is left."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30] = 255
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    loaded = read(tmp_path).load(0, 20, 20)
    assert (loaded == 1).all()
    loaded = read(tmp_path).load(0, 10, 20)
    assert (loaded[:, :, 6:14] == 1).all()
    assert (loaded[:, :, :3] == -1).all()


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    image = PIL.Image.fromarray(pixels)
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "a.png", exif=exif)
    loaded = read(tmp_path).load(0, 8, 8)
    assert (loaded[:, 4:] == 1).all()


def test_16_bit_gray_images_keep_their_values(tmp_path):
    gray = np.repeat(np.linspace(0, 65_535, 8).astype(np.uint16)[None], 8, 0)
    PIL.Image.fromarray(gray).save(tmp_path / "a.png")
    loaded = read(tmp_path).load(0, 8, 8)
    np.testing.assert_allclose(loaded, np.broadcast_to(np.linspace(-1, 1, 8), (3, 8, 8)), atol=1 / 127)


def test_label_folders_may_be_links(tmp_path, image_folder):
    (tmp_path / "animal").symlink_to(image_folder / "dog")
    (tmp_path / "animals").symlink_to(tmp_path)  # a cycle of links is entered once
    assert [sample["image"] for sample in read(tmp_path).samples] == ["animal/a.jpg", "animal/b.png"]


def test_formats_that_pillow_only_writes_are_ignored(tmp_path, image_folder):
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.pdf")
    with pytest.raises(InputError, match="the folder has no images"):
        read(tmp_path)


def test_a_file_name_that_is_not_utf8_is_refused(tmp_path, image_folder):
    path = os.fsencode(tmp_path) + b"/\xff.png"
    try:
        with open(path, "wb") as file:
            file.write((image_folder / "dog/b.png").read_bytes())
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(InputError, match=r"column 'image' cannot be written to a store: .* surrogates"):
        read(tmp_path)


def test_the_fingerprint_changes_if_a_file_changes(tmp_path, image_folder):
    (tmp_path / "a.png").write_bytes((image_folder / "cat/a.png").read_bytes())
    before = read(tmp_path).fingerprint
    (tmp_path / "a.png").write_bytes((image_folder / "dog/b.png").read_bytes())
    assert read(tmp_path).fingerprint != before


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="datasets is installed")
def test_a_dataset_without_the_package_datasets_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"needs the package datasets; pip install 'revelio_jax\[datasets\]'"):
        read("someone/pictures")


def png(value) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (value, value, value)).save(file, "png")
    return file.getvalue()


@pytest.fixture
def dataset():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    pictures = [{"bytes": data, "path": None} for data in (png(0), b"no picture", png(255))]
    return datasets.Dataset.from_dict({"picture": pictures, "kind": [1, 0, 1]}, features=features)


@pytest.mark.parametrize("kind", ["saved", "splits", "parquet"])
def test_datasets(dataset, kind, tmp_path):
    import datasets

    path = tmp_path / "data"
    if kind == "saved":
        dataset.save_to_disk(path)
    elif kind == "splits":
        datasets.DatasetDict({"test": dataset}).save_to_disk(path)
    else:
        path = tmp_path / "data.parquet"
        dataset.to_parquet(path)
    images = read(path, "picture", "kind", "test")
    assert images.samples == [
        {"id": 0, "label": "dog"},
        {"id": 1, "label": "cat"},
        {"id": 2, "label": "dog"},
    ]
    ((black, broken), (white,)) = images.batches([[0, 1], [2]], 8, 8)
    assert (black == -1).all()
    assert broken is None
    assert (white == 1).all()
    assert read(path, "picture", "", "test").samples == [{"id": i} for i in range(3)]
    with pytest.raises(InputError, match=r"config.extract.image_column is 'image'; .* has picture, kind"):
        read(path, split="test")
    with pytest.raises(InputError, match=r"config.extract.label_column is 'label'"):
        read(path, "picture", split="test")
    with pytest.raises(InputError, match=r"config.extract.image_column is 'kind', which must hold images"):
        read(path, "kind", "", split="test")
    if kind == "splits":
        with pytest.raises(InputError, match=r"config.extract.split is 'train'; .* has test"):
            read(path, "picture", "kind")


def claimed_png(width: int, height: int) -> bytes:
    """Return a PNG file that claims a size and has one line of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * (width + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8193, 8192), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_with_too_many_pixels_is_not_decoded(size, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(claimed_png(*size))
    monkeypatch.setattr(PIL.Image.Image, "convert", lambda *_: pytest.fail("the image was decoded"))
    assert read(tmp_path).load(0, 8, 8) is None
    with pytest.raises(ValueError, match=r"pixels"):
        open_image((tmp_path / "a.png").read_bytes())


def test_a_postscript_file_runs_no_program_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **options: pytest.fail("a program was started"))
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_bytes(text)
    assert read(tmp_path).load(0, 8, 8) is None
    (tmp_path / "a.png").rename(tmp_path / "a.eps")
    with pytest.raises(InputError, match="the folder has no images"):
        read(tmp_path)
