"""Mode generate with seed, guidance scale and size from columns of the prompt file."""

import numpy as np
import pytest

from extract import run
from revelio_jax.config import Config, ExtractConfig, ModelConfig
from revelio_jax.errors import InputError
from revelio_jax.store import open_store

FILE = """prompt,sd_seed,scale,wide,high
cat,11,1.5,8,8
cat,12,3.0,8,16
red,13,1.5,8,8
red,14,3.0,8,16
cat,11,3.0,8,8
"""
BASE = {"mode": "generate", "steps": 3, "height": 8, "width": 8, "batch_size": 2, "shard_samples": 5}
ALL = {"seed_column": "sd_seed", "guidance_column": "scale", "width_column": "wide", "height_column": "high"}


@pytest.fixture
def extracted(folder, tmp_path):
    """A function that extracts a prompt file and returns the rows [sample, row of the sample, d] and the store."""

    def extract(file: str, family: str = "sd", site: str = "unet.mid_block", name: str = "store", **fields):
        (tmp_path / "p.csv").write_text(file)
        location = str(tmp_path / name)
        own = {"prompts": str(tmp_path / "p.csv"), "store": location, "sites": (site,)}
        model = ModelConfig(id=str(folder(family)), family=family, device="cpu")
        run.extract(Config(model=model, extract=ExtractConfig(**BASE | own | fields)))
        site_reader = open_store(location).site()
        rows = np.concatenate([site_reader.read(*chunk) for chunk in site_reader.chunks])
        sample = np.concatenate([site_reader.read_index("sample", *chunk) for chunk in site_reader.chunks])
        assert (np.diff(sample) >= 0).all()
        return rows.reshape(len(np.unique(sample)), -1, rows.shape[1]), open_store(location)

    return extract


def test_each_prompt_is_sampled_with_its_own_settings(extracted):
    rows, store = extracted(FILE, pool="mean", **ALL)
    assert [sample["seed"] for sample in store.samples] == [11, 12, 13, 14, 11]
    header, *lines = FILE.strip().splitlines()
    for i, line in enumerate(lines):
        _, seed, scale, width, height = line.split(",")
        fields = {"seed": int(seed), "guidance": float(scale), "width": int(width), "height": int(height)}
        alone, _ = extracted(f"prompt\n{line.split(',')[0]}\n", name=f"alone{i}", pool="mean", **fields)
        np.testing.assert_allclose(rows[i], alone[0], rtol=1e-4, atol=1e-5, err_msg=header)
    assert np.abs(rows[0] - rows[4]).max() > 1e-3  # only the guidance scale differs


def test_one_size_for_all_prompts_is_the_size_of_the_store(extracted):
    file = "prompt,high\ncat,16\nred,16\n"
    rows, store = extracted(file, height_column="high")
    plain, _ = extracted("prompt\ncat\nred\n", name="plain", height=16)
    np.testing.assert_array_equal(rows, plain)
    assert (store.manifest["extract"]["height"], store.manifest["extract"]["width"]) == (16, 8)


def test_several_sizes_need_pooled_rows(extracted):
    with pytest.raises(InputError, match=r"config\.extract\.pool must then be mean"):
        extracted(FILE, **ALL)


def test_sizes_that_change_the_schedule_are_refused(extracted):
    """FLUX shifts its schedule by the size of the image."""
    with pytest.raises(InputError, match="the timesteps of this model depend on the size; split the file by size"):
        extracted(FILE, "flux", "flux.double.0.image", pool="mean", **ALL)


def test_a_column_of_seeds_that_is_not_used_is_mentioned(extracted, capsys):
    extracted("prompt,sd_seed\ncat,11\n")
    assert (
        "prompts: sd_seed is not used as seed; config.extract.seed_column=sd_seed uses it\n" in capsys.readouterr().out
    )
    extracted("prompt,sd_seed\ncat,11\n", name="other", seed_column="sd_seed")
    assert "not used" not in capsys.readouterr().out
