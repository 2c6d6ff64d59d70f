"""Monosemanticity, Moran's I and localization of planted latents, and the random dictionary."""

import dataclasses
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest

from revelio_jax.errors import InputError
from revelio_jax.interpret import command
from revelio_jax.interpret.embeddings import embedding_file, process
from revelio_jax.interpret.latents import dictionary, results, stream
from revelio_jax.interpret.latents.interpretation import interpret
from revelio_jax.interpret.measures.autocorrelation import morans_i
from revelio_jax.interpret.report import table
from revelio_jax.interpret.report.report_data import ReportData
from revelio_jax.store import open_store
from tests.revelio_jax.interpret.conftest import NOISE, PLANTED

JUDGE = "extract/miniature/sd"


@pytest.fixture
def own(image_config, with_fields, tmp_path):
    """``image_config`` with a new run folder that contains only the export."""
    shutil.copytree(pathlib.Path(image_config.run, "export"), tmp_path / "run" / "export")
    return with_fields(image_config, run=str(tmp_path / "run"), top=12)


@pytest.fixture
def masks(tmp_path) -> str:
    """Masks whose upper left quarter is the object."""
    folder = tmp_path / "masks"
    folder.mkdir()
    mask = np.zeros((32, 32), np.uint8)
    mask[:16, :16] = 255
    for i in range(64):
        PIL.Image.fromarray(mask).save(folder / f"{i:08d}.png")
    return str(folder)


@pytest.fixture
def embedded(own, with_fields):
    """A run with embeddings in which the samples of a class are equal and those of different classes orthogonal."""
    store = open_store(own.extract.store)
    kinds = store.table()["kind"].to_pylist()
    embedding = np.eye(3, dtype=np.float32)[[int(kind.removeprefix("class ")) for kind in kinds]]
    path = pathlib.Path(own.run, embedding_file.NAME)
    embedding_file.write(path, embedding, store.fingerprint, embedding_file.fingerprint(JUDGE))
    return with_fields(own, embedder=JUDGE), np.array(kinds)


def test_planted_latents_have_planted_measures(embedded, masks, with_fields):
    config, kinds = embedded
    run_results, _ = interpret(with_fields(config, masks=masks))
    measures, latents = run_results.summary["measures"], run_results.latents
    assert set(measures) == {"monosemanticity", "moran", "localization", "inside"}
    assert latents["monosemanticity"][PLANTED].as_py() == pytest.approx(1)  # it fires on one class
    pairs = (kinds[:, None] == kinds)[~np.eye(64, dtype=bool)].mean()
    assert measures["monosemanticity"]["chance"] == pytest.approx(pairs)
    assert latents["monosemanticity"][NOISE].as_py() == pytest.approx(pairs, abs=0.1)
    assert latents["inside"][PLANTED].as_py() == pytest.approx(1)
    assert latents["inside"][NOISE].as_py() == pytest.approx(0.25, abs=0.1)
    assert measures["inside"]["chance"] == pytest.approx(0.25)
    maps = run_results.part("profile", PLANTED, PLANTED + 1)[0, :10].reshape(10, 4, 4)
    assert latents["moran"][PLANTED].as_py() == pytest.approx(morans_i(maps).mean(), abs=1e-5)
    assert latents["moran"][PLANTED].as_py() > latents["moran"][NOISE].as_py() + 0.2
    sorted_maps = np.sort(maps.reshape(10, 16).astype(float), axis=1)
    share = (sorted_maps[:, -2:].sum(1) / sorted_maps.sum(1)).mean()  # 2 of 16 cells are the top tenth
    assert latents["localization"][PLANTED].as_py() == pytest.approx(share, abs=1e-5)
    assert latents["moran"].to_pylist()[4:] == [None, None]  # they never fire
    lines = command.summary_lines(run_results)
    assert all(f"\n{name}, " in lines for name in measures)
    shown = table.columns(ReportData(run_results, open_store(config.extract.store)))
    assert set(measures) < set(shown)


def test_another_embedder_gives_new_results(embedded, with_fields):
    config, _ = embedded
    assert interpret(config)[1]
    assert not interpret(config)[1]
    run_results, is_new = interpret(with_fields(config, embedder=None))
    assert is_new
    assert set(run_results.summary["measures"]) == {"moran", "localization"}


def test_texts_have_no_measures_of_maps(text_config, with_fields, tmp_path):
    shutil.copytree(pathlib.Path(text_config.run, "export"), tmp_path / "run" / "export")
    config = with_fields(text_config, run=str(tmp_path / "run"))
    assert interpret(config)[0].summary["measures"] == {}
    with pytest.raises(InputError, match=r"config\.interpret\.masks is .* do not form a map"):
        interpret(with_fields(config, masks=str(tmp_path)), again=True)


def test_a_folder_without_masks_is_refused(own, with_fields, tmp_path):
    for folder, message in ((tmp_path / "none", "must be a folder"), (tmp_path, r"no mask.*00000000\.png")):
        with pytest.raises(InputError, match=rf"config\.interpret\.masks is .*{message}"):
            interpret(with_fields(own, masks=str(folder)))


def test_the_random_dictionary_has_the_size_and_k_of_the_sae(own):
    config = dataclasses.replace(own, interpret=dataclasses.replace(own.interpret, sae="random"))
    run_results, _ = interpret(config)
    assert run_results.folder == results.folder_of(own.run, "random") == pathlib.Path(own.run, "random")
    assert run_results.summary["sae"]["architecture"] == "random"
    assert (run_results.summary["latents"], run_results.summary["k"]) == (6, 4)
    store, site = stream.open_site(own)
    assert run_results.summary["store"]["fingerprint"] == store.fingerprint
    latents = dictionary.random(dictionary.load(str(pathlib.Path(own.run, "export"))), site)
    np.testing.assert_allclose(np.linalg.norm(latents.W_dec_FD, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(latents.W_enc_DF, latents.W_dec_FD.T)
    np.testing.assert_allclose(latents.b_dec_D, site.mean, rtol=1e-6)


@pytest.mark.slow
def test_another_process_embeds_the_samples_once(own, with_fields, monkeypatch):
    config = with_fields(own, embedder=JUDGE)
    store = open_store(config.extract.store)
    first = process.embeddings(config, store)
    assert first.shape == (64, 616)
    assert np.isfinite(first).all()
    monkeypatch.setattr(process, "MODULE", "no.such.module")  # another call runs nothing
    np.testing.assert_array_equal(process.embeddings(config, store), first)


@pytest.mark.slow
def test_a_model_that_cannot_embed_the_samples_is_one_line(text_config, with_fields, tmp_path):
    config = with_fields(text_config, run=str(tmp_path / "run"), embedder=JUDGE)
    with pytest.raises(InputError, match=r"^config\.interpret\.embedder is .*; a judge of images cannot embed texts$"):
        process.embeddings(config, open_store(config.extract.store))
    assert not list((tmp_path / "run").glob("*.safetensors"))
