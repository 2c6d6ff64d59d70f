"""Tiny pipelines of every family, as fixtures: real components, random weights, a fitted tokenizer.

A conftest.py imports the fixtures that its tests need.
"""

import pytest
import torch
import transformers

from extract.miniature import tokenizer
from revelio_jax.pipelines.loading import TextEncoder

CAPTIONS = [f"a {style} emoji of {thing}" for style in ("flat", "glossy 3d") for thing in ("cat", "red apple")]
LAYERS, WIDTH = 3, 16
CLASSES = {0: "tench", 1: "goldfish", 2: "hen, biddy"}


@pytest.fixture(scope="session")
def fitted():
    """CLIP's tokenizer, fitted on a few captions."""
    return tokenizer.fit(CAPTIONS)


@pytest.fixture(scope="session")
def make_clip(fitted):
    """A function that makes a CLIP text encoder whose layers differ."""

    def make(width: int = WIDTH, layers: int = LAYERS, projection: bool = False):
        config = transformers.CLIPTextConfig(
            vocab_size=len(fitted),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            projection_dim=width,
            max_position_embeddings=fitted.model_max_length,
            bos_token_id=fitted.bos_token_id,
            eos_token_id=fitted.eos_token_id,
            pad_token_id=fitted.pad_token_id,
            initializer_factor=5.0,
        )
        torch.manual_seed(width)
        cls = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
        return cls(config).eval()

    return make


@pytest.fixture(scope="session")
def t5() -> TextEncoder:
    """T5 and a tokenizer of single letters, 10 positions."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    letters = transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=10)
    config = transformers.T5Config(
        vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2, feed_forward_proj="gated-gelu"
    )
    torch.manual_seed(0)
    return TextEncoder("text_encoder_2", transformers.T5EncoderModel(config).eval(), letters)


@pytest.fixture(scope="session")
def vae():
    import diffusers

    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, shift_factor=0.1
    ).eval()


@pytest.fixture(scope="session")
def sd(fitted, make_clip):
    """A StableDiffusionPipeline of 32 pixels."""
    import diffusers

    torch.manual_seed(0)
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4),
        text_encoder=make_clip(),
        tokenizer=fitted,
        unet=diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
        ),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def sdxl(fitted, make_clip, vae):
    """A StableDiffusionXLPipeline with text encoders of width 16 and 8."""
    import diffusers

    second = make_clip(width=8, projection=True)
    torch.manual_seed(0)
    return diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=make_clip(),
        text_encoder_2=second,
        tokenizer=fitted,
        tokenizer_2=fitted,
        unet=diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=24,
            attention_head_dim=4,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=4 * 6 + 8,
        ).eval(),
        scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1),
        add_watermarker=False,
    )


@pytest.fixture(scope="session")
def flux(fitted, make_clip, t5, vae):
    """A FluxPipeline of two blocks of each kind."""
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    ).eval()
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=make_clip(),
        tokenizer=fitted,
        text_encoder_2=t5.model,
        tokenizer_2=t5.tokenizer,
        transformer=transformer,
    )


@pytest.fixture(scope="session")
def dit(vae):
    """A DiTPipeline of 8 pixels, three blocks and three named classes."""
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
    ).eval()
    # Some of these parameters are initialized to zero, which makes every block an identity.
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler(), CLASSES)


def with_safety_checker(pipe, threshold: float = -2.0):
    """Return a StableDiffusionPipeline of the same components with a safety checker.

    It flags images whose similarity to its first concept is above ``threshold``; -2: all images.
    """
    import diffusers
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    vision = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision |= {"image_size": 32, "patch_size": 8, "projection_dim": 32}
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(transformers.CLIPConfig(vision_config=vision, projection_dim=32))
    torch.nn.init.normal_(checker.concept_embeds)
    checker.special_care_embeds_weights.data.fill_(2.0)  # no cosine is above 2
    checker.concept_embeds_weights.data.fill_(2.0)
    checker.concept_embeds_weights.data[0] = threshold
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    extractor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    checked = diffusers.StableDiffusionPipeline(**parts, safety_checker=checker, feature_extractor=extractor)
    checked.set_progress_bar_config(disable=True)
    return checked


def similarities(checker, images) -> list[float]:
    """Return the similarity of images, float [image, height, width, 3] in 0 .. 1, to the checker's first concept."""
    extractor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    pixels = extractor([(255 * image).astype("uint8") for image in images], return_tensors="pt").pixel_values
    with torch.inference_mode():
        embedded = checker.visual_projection(checker.vision_model(pixels)[1])
        return torch.nn.functional.cosine_similarity(embedded, checker.concept_embeds[:1]).tolist()
