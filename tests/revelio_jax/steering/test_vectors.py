"""Concepts as vectors: saved, loaded, and attached without an SAE."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from revelio_jax.errors import InputError
from revelio_jax.steering import Concept, attach_vectors, load_concept, save_concept
from revelio_jax.steering.concept import hidden_states
from revelio_jax.steering.vectors import difference_of_means
from tests.helpers.steering import record_outputs

SITES = {"sd": "clip.layer.1", "sdxl": "clip_l.layer.1+clip_g.layer.1", "flux": "t5.block.1"}


@pytest.mark.parametrize("rule", ["paper", "contrast"])
@pytest.mark.parametrize("family", SITES)
def test_saved_vectors_steer_as_the_sae_does(tiny, make_steerer, run, tmp_path, family, rule):
    pipe = tiny(family)
    steerer = make_steerer(pipe, SITES[family])
    file = tmp_path / "apple.safetensors"
    save_concept(file, steerer.vectors(pipe, "red apple", rule))
    assert [path.name for path in tmp_path.iterdir()] == ["apple.safetensors"]
    plain = run(pipe)
    with steerer.attach(pipe, {"red apple": -1.0}, rule=rule):
        wanted = run(pipe)
    with attach_vectors(pipe, file, -1.0) as attached:
        assert torch.equal(run(pipe), wanted)
        attached.set_strength(file, 0.0)
        assert torch.equal(run(pipe), plain)
    with steerer.attach(pipe, {str(file): -1.0}):  # as one of several concepts
        assert torch.equal(run(pipe), wanted)
    with attach_vectors(pipe, load_concept(file), -1.0):
        assert torch.equal(run(pipe), wanted)
    assert torch.equal(run(pipe), plain)
    assert (wanted != plain).any()


@pytest.mark.parametrize("mask", [None, torch.ones(8, 8)])
def test_the_report_counts_a_vector_at_every_position(tiny, run, mask):
    pipe, site = tiny("flux"), "flux.double.1.image"
    with record_outputs(pipe, site) as plain:
        run(pipe, steps=1)
    concept = Concept("apple", {site: torch.ones(1, plain[0].shape[-1])})
    with attach_vectors(pipe, concept, 2.0, mask=mask) as attached:
        run(pipe, steps=1)
        report = attached.report()[site]
    assert report.passes == len(plain)
    expected = 2 * torch.cat(plain).numel() ** 0.5 / torch.cat(plain).norm()
    assert report.relative_change == pytest.approx(float(expected), rel=1e-4)


def test_the_pooled_vector_is_saved(tiny, make_steerer, run, tmp_path):
    pipe = tiny("flux")
    steerer = make_steerer(pipe, "t5.block.1")
    concept = steerer.vectors(pipe, "red apple")
    save_concept(tmp_path / "a.safetensors", concept)
    (tmp_path / "another").touch()  # other users can read it like any other file
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "another").stat().st_mode
    with steerer.attach(pipe, {"red apple": -1.0}, rule="contrast", pooled=True):
        wanted = run(pipe)
    with attach_vectors(pipe, tmp_path / "a.safetensors", -1.0, pooled=True):
        torch.testing.assert_close(run(pipe), wanted)
    with attach_vectors(pipe, concept, -1.0):
        assert (run(pipe) != wanted).any()
    with pytest.raises(InputError, match="without a pooled vector"):
        attach_vectors(pipe, dataclasses.replace(concept, pooled=None), -1.0, pooled=True)


def test_a_difference_of_means_subtracts_means(tiny):
    pipe = tiny("sd")
    having, lacking = ["red apple", "flat red apple"], ["cat"]
    concept = difference_of_means(pipe, "clip.layer.1", having, lacking, "red apple")
    x = hidden_states(pipe, "clip.layer.1", having + lacking)
    torch.testing.assert_close(concept.directions["clip.layer.1"], (x[0] + x[1]) / 2 - x[2])
    assert concept.family == "sd"


def test_one_vector_steers_every_position_of_a_denoiser(tiny, run):
    pipe = tiny("sd")
    directions = {"unet.mid_block": torch.ones(1, 16), "unet.up_blocks.1": torch.ones(1, 8)}
    plain = run(pipe)
    with attach_vectors(pipe, Concept("light", directions), 3.0, steps=(1000, 500)):
        assert (run(pipe) != plain).any()
    with attach_vectors(pipe, Concept("light", directions), 0.0):
        assert torch.equal(run(pipe), plain)


def test_vectors_that_do_not_fit_are_refused(tiny, make_steerer, run):
    pipe = tiny("sd")
    concept = make_steerer(pipe, "clip.layer.1").vectors(pipe, "red apple")
    with pytest.raises(InputError, match="family sd"):
        attach_vectors(tiny("flux"), concept, 1.0)
    wide = dataclasses.replace(concept, directions={"clip.layer.1": torch.ones(24, 99)})
    with pytest.raises(InputError, match="another model"):
        attach_vectors(pipe, wide, 1.0)
    short = dataclasses.replace(concept, directions={"clip.layer.1": torch.ones(3, 16)})
    with attach_vectors(pipe, short, 1.0), pytest.raises(InputError, match="prompts of 3 tokens"):
        run(pipe)
    with pytest.raises(InputError, match=r"attach_vectors"):
        make_steerer(pipe, "clip.layer.0").attach(pipe, {concept: 1.0})
    with pytest.raises(InputError, match="paper, contrast"):
        make_steerer(pipe, "clip.layer.1").vectors(pipe, "red apple", "gated")
    assert type(pipe).__name__ == "StableDiffusionPipeline"


def test_a_file_without_a_concept_is_refused(tmp_path):
    file = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match="cannot be read"):
        load_concept(file)
    file.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        load_concept(file)
    save_file({"clip.layer.1": torch.ones(2, 3)}, file)
    with pytest.raises(InputError, match="it must be a file written by"):
        load_concept(file)
    save_concept(file, Concept("a", {"clip.layer.1": torch.full((2, 3), torch.nan)}))
    with pytest.raises(InputError, match="finite"):
        load_concept(file)
