"""Copies of a steered pipeline, and pipelines that share its components in other threads, are not steered."""

import copy
import pickle
import threading

import pytest
import torch

from revelio_jax.errors import InputError
from revelio_jax.steering import Clamp

CONCEPT = "red apple"


def test_a_copy_of_a_steered_pipeline_is_not_steered(tiny, make_steerer, run, tmp_path):
    pipe = tiny("sd")
    plain = run(pipe)
    steerer = make_steerer(pipe, "clip.layer.1")
    with steerer.attach(pipe, {CONCEPT: 1.0}, rule="paper"):
        copied = copy.deepcopy(pipe)
        torch.save(pipe.text_encoder, tmp_path / "encoder.pt")
        steered = run(pipe)
        assert torch.equal(run(copied), plain)
    assert torch.equal(run(copied), plain)
    with steerer.attach(copied, {CONCEPT: 1.0}, rule="paper"):
        assert torch.equal(run(copied), steered)
    assert torch.equal(run(copied), plain)


def test_a_pickled_steerer_steers_the_same(tiny, make_steerer, run):
    pipe = tiny("sd")
    steerer = make_steerer(pipe, "clip.layer.1")
    with steerer.attach(pipe, {CONCEPT: 1.0}):
        steered = run(pipe)
    with pickle.loads(pickle.dumps(steerer)).attach(pipe, {CONCEPT: 1.0}):
        assert torch.equal(run(pipe), steered)


@pytest.mark.parametrize("site", ["unet.mid_block", "clip.layer.1"])
def test_a_pipeline_of_the_components_in_another_thread_is_not_steered(tiny, make_steerer, run, site):
    """It runs in the middle of a pass of the steered pipeline."""
    pipe = tiny("sd")
    other = type(pipe)(**pipe.components, requires_safety_checker=False)
    other.scheduler = copy.deepcopy(pipe.scheduler)
    other.set_progress_bar_config(disable=True)
    plain, results, owner = run(pipe), [], threading.get_ident()
    concepts = {3: Clamp(4.0)} if site.startswith("unet") else {CONCEPT: 2.0}
    module = pipe.unet.down_blocks[0] if site.startswith("unet") else pipe.text_encoder.get_input_embeddings()

    def meanwhile(*_):
        if threading.get_ident() == owner and len(results) < 2:
            thread = threading.Thread(target=lambda: results.append(run(other)))
            thread.start()
            thread.join()

    with make_steerer(pipe, site).attach(pipe, concepts):
        steered = run(pipe)
        handle = module.register_forward_pre_hook(meanwhile)
        again = run(pipe)
        handle.remove()
    assert torch.equal(again, steered)
    assert (steered != plain).any()
    assert len(results) == 2
    assert all(torch.equal(result, plain) for result in results)


def test_one_steered_pipeline_runs_in_one_thread_at_a_time(tiny, make_steerer, run):
    pipe = tiny("sd")
    owner, messages = threading.get_ident(), []

    def call():
        try:
            run(pipe)
        except InputError as error:
            messages.append(str(error))

    def meanwhile(*_):
        if threading.get_ident() == owner and not messages:
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()

    with make_steerer(pipe, "unet.mid_block").attach(pipe, {3: Clamp(4.0)}):
        steered = run(pipe)
        handle = pipe.unet.register_forward_pre_hook(meanwhile)
        assert torch.equal(run(pipe), steered)
        handle.remove()
    assert len(messages) == 1
    assert "is steered and runs in another thread" in messages[0]
