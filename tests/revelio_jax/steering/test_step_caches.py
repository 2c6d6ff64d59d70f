"""Caches of diffusers: steering acts once in every pass, or is refused while the cache is enabled."""

import diffusers
import pytest
import torch

from revelio_jax.errors import InputError
from revelio_jax.steering import Clamp

SITE = "flux.double.0.image"
SKIPPING = {
    "first block": diffusers.FirstBlockCacheConfig(threshold=1e9),
    "faster": diffusers.FasterCacheConfig(
        spatial_attention_timestep_skip_range=(-1, 681),
        is_guidance_distilled=True,
        current_timestep_callback=lambda: 900,
    ),
    "taylorseer": diffusers.TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1),
    "sea": diffusers.SeaCacheConfig(),
    "mag": diffusers.MagCacheConfig(num_inference_steps=3, mag_ratios=torch.ones(3)),
}

KEEPING = {
    "attention": diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 2000),
        spatial_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: 500,
    ),
    "text": diffusers.TextKVCacheConfig(),
}


@pytest.mark.parametrize("name", SKIPPING)
def test_a_cache_that_skips_blocks_is_refused(tiny, make_steerer, run, name):
    pipe = tiny("flux")
    pipe.transformer.enable_cache(SKIPPING[name])
    try:
        with make_steerer(pipe, SITE).attach(pipe, {3: Clamp(4.0)}) as attached:
            with pytest.raises(
                InputError, match=r"FluxPipeline cannot be steered at flux.*call disable_cache\(\) on it"
            ):
                run(pipe, steps=3)
            pipe.transformer.disable_cache()  # some caches are not usable after a pass that failed
            run(pipe, steps=3)
            pipe.transformer.enable_cache(SKIPPING[name])
            attached.set_strength(3, 0.0)
            run(pipe, steps=3)
            pipe.transformer.disable_cache()
        pipe.transformer.enable_cache(SKIPPING[name])
        with make_steerer(pipe, "t5.block.1").attach(pipe, {"red apple": 1.0}, rule="paper"):
            run(pipe, steps=3)  # embeddings are steered before the denoiser runs
    finally:
        pipe.transformer.disable_cache()


@pytest.mark.parametrize("name", KEEPING)
def test_a_cache_that_keeps_all_blocks_steers_every_pass_once(tiny, make_steerer, run, name):
    pipe = tiny("flux")
    pipe.transformer.enable_cache(KEEPING[name])
    computed = []
    handle = pipe.transformer.transformer_blocks[0].ff.register_forward_hook(lambda *_: computed.append(1))
    try:
        with make_steerer(pipe, SITE).attach(pipe, {3: Clamp(4.0)}) as attached:
            run(pipe, steps=4, guided=False)
            assert attached.report()[SITE].passes == len(computed) == 4
    finally:
        handle.remove()
        pipe.transformer.disable_cache()
