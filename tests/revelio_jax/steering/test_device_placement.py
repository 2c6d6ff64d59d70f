"""Steering of compiled and offloaded models: the same bits as of plain models."""

import pytest
import torch

from revelio_jax.pipelines.families import BY_NAME
from revelio_jax.steering import Clamp
from tests.helpers.steering import OFFLOADS

SITES = {
    "sd": ("clip.layer.1", "unet.up_blocks.1.attentions.0"),
    "sdxl": ("clip_l.layer.1+clip_g.layer.1", "unet.down_blocks.1.attentions.0"),
    "flux": ("t5.block.1", "flux.double.1.image", "flux.single.0.image"),
}


def attach(pipe, make_steerer, family: str, rule: str):
    """Attach to a text encoder and to the denoiser."""
    text, *denoiser = SITES[family]
    attached = [make_steerer(pipe, text).attach(pipe, {"red apple": -1.0}, rule=rule)]
    return attached + [
        make_steerer(pipe, site).attach(pipe, {3: Clamp(4.0), 5: -1.0}, ramp=(1.0, 0.5)) for site in denoiser
    ]


def wrapped(module, backend):
    return torch.compile(module, backend=backend, fullgraph=True)


def in_place(module, backend):
    module.compile(backend=backend, fullgraph=True)
    return module


def by_block(module, backend):
    if not hasattr(module, "compile_repeated_blocks"):
        return in_place(module, backend)
    module.compile_repeated_blocks(backend=backend, fullgraph=True)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(  # each once, since tracing takes seconds
    ("family", "compiled", "rule"),
    [("sd", wrapped, "gated"), ("flux", in_place, "paper"), ("sdxl", by_block, "gated")],
)
def test_models_that_are_compiled_already_are_steered(own, make_steerer, run, family, compiled, rule):
    """Each model is one graph, and changes of strengths and steps compile no other graph."""
    pipe = own(family)
    plain = run(pipe)
    attached = attach(pipe, make_steerer, family, rule)
    wanted = run(pipe)
    for each in attached:
        each.remove()
    assert (wanted != plain).any()

    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    for name in [*BY_NAME[family].text_encoders.values(), BY_NAME[family].denoiser]:
        setattr(pipe, name, compiled(getattr(pipe, name), backend))
    torch.testing.assert_close(run(pipe), plain)
    assert graphs
    attached = attach(pipe, make_steerer, family, rule)
    torch.testing.assert_close(run(pipe), wanted)
    before = len(graphs)
    torch.testing.assert_close(run(pipe), wanted)
    attached[0].set_strength("red apple", -0.5)
    run(pipe, steps=3)
    assert len(graphs) == before
    for each in attached:
        for concept in each.strengths:
            each.set_strength(concept, 0.0)
    torch.testing.assert_close(run(pipe), plain)
    for each in attached:
        each.remove()
    torch.testing.assert_close(run(pipe), plain)


@pytest.mark.parametrize("rule", ["paper", "gated"])
@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("family", SITES)
def test_offloaded_models_are_steered(own, make_steerer, run, family, offload, rule):
    """The CPU stands for the accelerator, since tests cannot rely on one."""
    pipe = own(family)
    plain = run(pipe)
    attached = attach(pipe, make_steerer, family, rule)
    wanted = run(pipe)
    for each in attached:
        each.remove()
    offload(pipe)
    attached = attach(pipe, make_steerer, family, rule)
    for _ in range(2):
        assert torch.equal(run(pipe), wanted)
    for each in attached:
        each.remove()
    assert torch.equal(run(pipe), plain)
