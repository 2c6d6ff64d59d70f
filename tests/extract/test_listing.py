"""--list_sites: shapes of the real models at full width and depth, from their config files alone."""

import json

import pytest

from extract import run
from revelio_jax.errors import report_errors

CLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
}
BIG_G = CLIP | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 32128,
}
VAE = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4, "layers_per_block": 2}
DOWN, CROSS_DOWN, UP, CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
# Class of the pipeline, and class and config of every component with hook points.
MODELS = {
    "sd": (
        "StableDiffusionPipeline",
        {
            "text_encoder": ("CLIPTextModel", CLIP),
            "vae": ("AutoencoderKL", VAE),
            "unet": (
                "UNet2DConditionModel",
                {
                    "sample_size": 64,
                    "attention_head_dim": 8,
                    "block_out_channels": [320, 640, 1280, 1280],
                    "cross_attention_dim": 768,
                    "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
                    "up_block_types": [UP, CROSS_UP, CROSS_UP, CROSS_UP],
                },
            ),
        },
    ),
    "sdxl": (
        "StableDiffusionXLPipeline",
        {
            "text_encoder": ("CLIPTextModel", CLIP),
            "text_encoder_2": ("CLIPTextModelWithProjection", BIG_G),
            "vae": ("AutoencoderKL", VAE),
            "unet": (
                "UNet2DConditionModel",
                {
                    "sample_size": 128,
                    "attention_head_dim": [5, 10, 20],
                    "block_out_channels": [320, 640, 1280],
                    "cross_attention_dim": 2048,
                    "transformer_layers_per_block": [1, 2, 10],
                    "use_linear_projection": True,
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 256,
                    "projection_class_embeddings_input_dim": 2816,
                    "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN],
                    "up_block_types": [CROSS_UP, CROSS_UP, UP],
                },
            ),
        },
    ),
    "flux": (
        "FluxPipeline",
        {
            "text_encoder": ("CLIPTextModel", CLIP),
            "text_encoder_2": ("T5EncoderModel", T5_XXL),
            "vae": ("AutoencoderKL", VAE | {"latent_channels": 16}),
            "transformer": (
                "FluxTransformer2DModel",
                {
                    "in_channels": 64,
                    "num_layers": 19,
                    "num_single_layers": 38,
                    "attention_head_dim": 128,
                    "num_attention_heads": 24,
                    "joint_attention_dim": 4096,
                    "pooled_projection_dim": 768,
                    "guidance_embeds": True,
                },
            ),
        },
    ),
    "dit": (
        "DiTPipeline",
        {
            "vae": ("AutoencoderKL", VAE),
            "transformer": (
                "DiTTransformer2DModel",
                {
                    "num_attention_heads": 16,
                    "attention_head_dim": 72,
                    "in_channels": 4,
                    "out_channels": 8,
                    "num_layers": 28,
                    "sample_size": 32,
                    "num_embeds_ada_norm": 1000,
                },
            ),
        },
    ),
}


@pytest.fixture
def list_points_of(tmp_path, capsys):
    """A function that lists the hook points of a model, {name: cells}, from a folder that holds only config files."""

    def list_points(family: str, tokens: int = 512, **fields) -> dict[str, list[str]]:
        pipeline, components = MODELS[family]
        index = {"_class_name": pipeline, "scheduler": ["diffusers", "DDIMScheduler"]}
        for name, (cls, config) in components.items():
            index[name] = ["transformers" if "text_encoder" in name else "diffusers", cls]
            (tmp_path / "model" / name).mkdir(parents=True)
            (tmp_path / "model" / name / "config.json").write_text(json.dumps(config))
        (tmp_path / "model/scheduler").mkdir()
        (tmp_path / "model/scheduler/scheduler_config.json").write_text("{}")
        (tmp_path / "model/model_index.json").write_text(json.dumps(index))
        (tmp_path / "model/tokenizer_2").mkdir()
        (tmp_path / "model/tokenizer_2/tokenizer_config.json").write_text(json.dumps({"model_max_length": tokens}))
        config = tmp_path / "config.py"
        config.write_text(
            "from revelio_jax.config import default\n\ndef get_config():\n    c = default()\n"
            f"    c.model.id = {str(tmp_path / 'model')!r}\n    c.model.family = {family!r}\n    return c\n"
        )
        flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in fields.items()]
        with report_errors():
            run.main(["--config", str(config), "--list_sites", *flags])
        lines = capsys.readouterr().out.splitlines()[2:]
        assert not (tmp_path / "store").exists()
        rows = {line.split()[0]: [cell.strip() for cell in line.split("  ") if cell.strip()][1:] for line in lines}
        return rows | {"unused:": [line[8:] for line in lines if line.startswith("unused: ")]}

    return list_points


def test_stable_diffusion_1(list_points_of):
    cells_of = list_points_of("sd", extract__timesteps="(0, 25)", extract__mode="noised")
    assert cells_of["clip.layer.11"] == ["[77, 768]", "236.5 kB"]
    assert "clip.layer.12" not in cells_of
    assert cells_of.pop("unused:") == []
    shapes = {name: cells[0] for name, cells in cells_of.items()}
    assert shapes["unet.mid_block"] == "[64, 1,280]"
    assert [shapes[f"unet.up_blocks.{i}"] for i in range(4)] == [
        "[256, 1,280]",
        "[1,024, 1,280]",
        "[4,096, 640]",
        "[4,096, 320]",
    ]
    attentions = {name: shape for name, shape in shapes.items() if ".attentions." in name}
    assert len(attentions) == 16
    assert attentions["unet.down_blocks.2.attentions.1"] == "[256, 1,280]"
    assert attentions["unet.up_blocks.1.attentions.2"] == "[256, 1,280]"
    assert attentions["unet.up_blocks.3.attentions.0"] == "[4,096, 320]"
    # float32, two timesteps. The input of the middle block has the shape of its output; that of an up block does not.
    assert cells_of["unet.mid_block"][1:] == ["327.7 kB", "655.4 kB", "yes"]
    assert cells_of["unet.up_blocks.1"][-1] == "no"


@pytest.mark.slow
def test_sdxl(list_points_of):
    cells_of = list_points_of("sdxl", extract__height=1024, extract__width=1024, extract__dtype="float16")
    assert len([name for name in cells_of if ".attentions." in name]) == 11
    assert cells_of["clip_g.layer.31"][0] == "[77, 1,280]"
    # The U-Net reads the tokens of the layers before the last ones; the pooled vector needs the last one of clip_g.
    assert [name for name, cells in cells_of.items() if "unused" in cells] == ["clip_l.layer.11"]
    assert cells_of["unused:"] == ["no output of the pipeline depends on this hook point"]
    assert cells_of["unet.down_blocks.1.attentions.1"][0] == "[4,096, 640]"
    assert cells_of["unet.mid_block.attentions.0"][0] == "[1,024, 1,280]"
    assert cells_of["unet.up_blocks.0.attentions.2"][:2] == ["[1,024, 1,280]", "2.621 MB"]


@pytest.mark.slow
def test_flux(list_points_of):
    cells_of = list_points_of("flux", extract__height=1024, extract__width=1024, extract__dtype="bfloat16")
    assert cells_of["t5.block.22"] == ["[512, 4,096]", "4.194 MB"]
    blocks = {name: cells for name, cells in cells_of.items() if name.startswith("flux.")}
    assert len(blocks) == 2 * (19 + 38)
    assert {cells[0] for name, cells in blocks.items() if name.endswith("text")} == {"[512, 3,072]"}
    assert {cells[0] for name, cells in blocks.items() if name.endswith("image")} == {"[4,096, 3,072]"}
    assert [name for name, cells in cells_of.items() if "unused" in cells] == ["flux.single.37.text"]
    assert {cells[3] for cells in blocks.values()} == {"yes"}
    assert blocks["flux.double.18.image"][1] == "25.17 MB"


@pytest.mark.slow
def test_the_tokenizer_of_flux_limits_the_text_positions(list_points_of):
    cells_of = list_points_of("flux", tokens=24, extract__height=1024, extract__width=1024)
    assert cells_of["t5.block.22"][0] == "[24, 4,096]"
    assert cells_of["flux.double.18.text"][0] == "[24, 3,072]"


def test_dit_xl_2(list_points_of):
    cells_of = list_points_of("dit", extract__height=256, extract__width=256, extract__pool="mean")
    assert cells_of.pop("unused:") == []
    assert list(cells_of) == [f"dit.block.{i}" for i in range(28)]
    assert {cells[0] for cells in cells_of.values()} == {"[1, 1,152]"}


def test_wrong_input_is_refused_in_one_line(list_points_of, capsys):
    with pytest.raises(SystemExit) as exit:
        list_points_of("dit", extract__height=512)
    assert exit.value.code == 2
    assert (
        capsys.readouterr().err == "error: config.extract.height is 512; it must be 256, the only size of this model\n"
    )
