"""Hook points that no output depends on are refused, also when a call's arguments make them unused."""

import pytest
import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points
from revelio_jax.steering import Concept, attach_vectors

UNUSED = [("sdxl", "clip_l.layer.2"), ("sdxl", "clip_l.layer.2+clip_g.layer.2"), ("flux", "flux.single.1.text")]


@pytest.mark.parametrize(("family", "site"), UNUSED)
def test_a_strength_at_an_unused_hook_point_is_refused(tiny, make_steerer, run, family, site):
    pipe = tiny(family)
    steerer, unused = make_steerer(pipe, site), site.partition("+")[0]
    vectors = Concept("apple", {unused: torch.ones(1, hook_points.resolve(pipe, unused).d)})
    message = f"{unused} cannot be steered, because no output of a {type(pipe).__name__} depends on it; use an earlier"
    with pytest.raises(InputError, match=message):
        steerer.attach(pipe, {3: -1.0})
    assert "_revelio_steering" not in vars(pipe)
    plain = run(pipe)
    with steerer.attach(pipe, {3: 0.0}) as attached:
        assert torch.equal(run(pipe), plain)
        attached.set_strength(3, -1.0)
        with pytest.raises(InputError, match=message):
            run(pipe)
        with pytest.raises(InputError, match=message):
            attach_vectors(pipe, vectors, 1.0)


def test_clip_skip_makes_a_layer_unused(tiny, make_steerer, run):
    pipe = tiny("sdxl")
    with make_steerer(pipe, "clip_l.layer.1").attach(pipe, {3: -1.0}):
        run(pipe)
        with pytest.raises(InputError, match=r"clip_l\.layer\.1 cannot be steered.* with clip_skip=1; use an earlier"):
            run(pipe, clip_skip=1)
        with pytest.raises(InputError, match="with clip_skip=1"):
            pipe.encode_prompt("a cat", do_classifier_free_guidance=False, clip_skip=1)
    with make_steerer(pipe, "clip_l.layer.0").attach(pipe, {3: 5.0}):
        steered = run(pipe, clip_skip=1)
    assert not torch.equal(run(pipe, clip_skip=1), steered)
