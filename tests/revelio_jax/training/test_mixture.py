"""The mixture of stores: weights, patterns, statistics and refused entries."""

import fractions

import numpy as np
import pytest

from revelio_jax.errors import InputError
from revelio_jax.training.mixture import open_mixture


@pytest.fixture(scope="module")
def parts():
    random = np.random.default_rng(0)
    rows = zip((64, 160, 320), (0, 5, -3), (1, 2, 9), strict=True)
    return [random.normal(mean, scale, (count, 4)).astype(np.float32) for count, mean, scale in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_store, parts):
    """A folder with stores a, b_1 and b_2 of 64, 160 and 320 rows of width 4, and a file."""
    folder = tmp_path_factory.mktemp("stores")
    for name, rows in zip(("a", "b_1", "b_2"), parts, strict=True):
        write_store(folder / name, rows)
    (folder / "b_note.txt").write_text("")
    return folder


def test_a_mixture_of_one_store_equals_the_store(folder):
    mixture = open_mixture([f"{folder}/a"])
    (store,), (site,) = mixture.stores, mixture.sites
    assert (mixture.name, mixture.d, mixture.rows) == (site.name, site.d, site.rows)
    assert mixture.fingerprint == store.fingerprint
    np.testing.assert_array_equal(mixture.mean, site.mean)
    np.testing.assert_array_equal(mixture.variance, site.variance)


@pytest.mark.parametrize(
    ("entries", "shares"),
    [
        (["{}/a", "{}/b_1"], [(1, 2), (1, 2)]),
        (["{}/b_*"], [(1, 3), (2, 3)]),  # one entry: weighted by rows
        (["0.25:{}/a", "0.75:{}/b_?"], [(1, 4), (1, 4), (1, 2)]),
        (["2:{}/a", "1/2:{}/b_1", "1e0:{}/b_2"], [(4, 7), (1, 7), (2, 7)]),
    ],
)
def test_shares_and_statistics_follow_the_weights(folder, parts, entries, shares):
    mixture = open_mixture([entry.format(folder) for entry in entries], "clip.layer.1")
    assert mixture.shares == tuple(fractions.Fraction(*share) for share in shares)
    chosen = [parts["a12".index(store.location[-1])] for store in mixture.stores]
    weights = np.concatenate(
        [np.full(len(rows), n / d / len(rows)) for rows, (n, d) in zip(chosen, shares, strict=True)]
    )
    rows = np.concatenate(chosen).astype(np.float64)
    mean = weights @ rows
    np.testing.assert_allclose(mixture.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(mixture.variance, weights @ np.square(rows - mean), rtol=1e-9)
    assert mixture.rows == len(rows)


def test_the_fingerprint_depends_on_all_stores_and_weights(folder):
    mixed = [open_mixture([f"{w}:{folder}/a", f"{folder}/{b}"]) for w, b in ((1, "b_1"), (2, "b_1"), (2, "b_2"))]
    assert len({mixture.fingerprint for mixture in mixed}) == 3
    assert mixed[1].fingerprint == open_mixture([f"4:{folder}/a", f"2:{folder}/b_1"]).fingerprint


def test_a_store_name_may_have_colons_and_brackets(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd:name[1]").symlink_to(folder / "a")
    assert open_mixture(["1:odd:name[1]"]).rows == 64


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "two", "", "1/0"])
def test_a_weight_must_be_above_0(folder, weight):
    with pytest.raises(InputError, match=rf"config\.data\.stores has '{weight}:.*must be a weight above 0"):
        open_mixture([f"{weight}:{folder}/a"])


def test_stores_that_do_not_match_are_refused(folder, tmp_path, write_store):
    def refused(match, *entries, site=None):
        with pytest.raises(InputError, match=match):
            open_mixture(entries, site)

    wide = write_store(tmp_path / "wide", np.eye(32, 5, dtype=np.float32))
    model = write_store(tmp_path / "model", np.eye(32, 4, dtype=np.float32), model={"id": "m"})
    half = write_store(tmp_path / "half", np.eye(32, 4, dtype=np.float32), finish=False)
    first = f"{folder}/a"
    refused(r"has the pattern '.*/c_\*', which matches no folder", first, f"2:{folder}/c_*")
    refused("it does not exist", first, f"{folder}/c")
    refused("unfinished", first, half)
    refused(r"clip\.layer\.1 of .*wide has width 5, but 4 in .*/a", first, wide)
    refused(r"model was extracted from \{'id': 'm'\}, but .*/a from None", first, model)
    refused("contains .*b_1 twice", f"{folder}/b_*", f"{folder}/b_1")
    refused("config.data.site is 'x'; store .* has clip.layer.1", first, site="x")


def test_a_store_without_the_site_is_refused(folder, tmp_path, write_store, monkeypatch):
    other = write_store(tmp_path / "other", np.eye(32, 4, dtype=np.float32), site="clip.layer.2")
    with pytest.raises(InputError, match=r"other has no site clip\.layer\.1, .* it has clip\.layer\.2"):
        open_mixture([f"{folder}/a", other])
