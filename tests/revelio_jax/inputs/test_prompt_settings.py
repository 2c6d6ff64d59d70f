"""Settings of single prompts from columns of a prompt file."""

import dataclasses

import pytest

from revelio_jax.config import ExtractConfig, SteerConfig
from revelio_jax.errors import InputError
from revelio_jax.inputs import prompt_settings
from revelio_jax.inputs.prompt_settings import PromptSettings

I2P = {"sd_seed": "3188390012.0", "sd_guidance_scale": "7.5", "sd_image_width": "768", "sd_image_height": "512"}
COLUMNS = {
    "seed_column": "sd_seed",
    "guidance_column": "sd_guidance_scale",
    "width_column": "sd_image_width",
    "height_column": "sd_image_height",
}


@pytest.mark.parametrize("section", [ExtractConfig, SteerConfig])
def test_columns_override_the_fields_of_the_section(section):
    rows = [{"id": 0, "prompt": "a", **I2P}, {"id": 1, "prompt": "b", **I2P, "sd_seed": 5, "sd_guidance_scale": 2}]
    assert prompt_settings.read(rows, section(**COLUMNS)) == [
        PromptSettings(3188390012, 7.5, 512, 768),
        PromptSettings(5, 2.0, 512, 768),
    ]
    assert prompt_settings.read(rows[:1], section(guidance=3.0, height=64)) == [PromptSettings(None, 3.0, 64, 512)]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("sd_seed", "x", "the sd_seed of prompt 0 is 'x'; it must be a 64-bit whole number"),
        ("sd_seed", "1.5", "64-bit whole number"),
        ("sd_seed", "", "64-bit whole number"),
        ("sd_seed", None, "64-bit whole number"),
        ("sd_seed", 2**64, "64-bit whole number"),
        ("sd_seed", "1e999999999", "64-bit whole number"),
        ("sd_guidance_scale", "-1", "the sd_guidance_scale of prompt 0 is '-1'; it must be a number of at least 0"),
        ("sd_guidance_scale", "nan", "a number of at least 0"),
        ("sd_guidance_scale", "inf", "a number of at least 0"),
        ("sd_guidance_scale", 10**400, "a number of at least 0"),
        (
            "sd_image_width",
            "0",
            "the sd_image_width of prompt 0 is '0'; it must be a number of pixels from 8 to 16,384",
        ),
        ("sd_image_height", "300", "the sd_image_height of prompt 0 is '300'; it must be a multiple of 8"),
    ],
)
def test_a_wrong_value_names_its_column_and_prompt(column, value, message):
    with pytest.raises(InputError, match=message):
        prompt_settings.read([{"prompt": "a", **I2P, column: value}], ExtractConfig(**COLUMNS))


def test_a_missing_column_is_refused_with_the_columns_of_the_file():
    with pytest.raises(
        InputError, match=r"config\.steer\.seed_column is 'seed'; config\.steer\.prompts has the columns sd_seed, "
    ):
        prompt_settings.read([{"prompt": "a", **I2P}], SteerConfig(seed_column="seed"))


def test_an_unused_column_of_seeds_is_mentioned():
    rows = [{"prompt": "a", "sd_seed": 1, "evaluation_seed": 2, "seeds": 3, "style": "flat"}]
    assert prompt_settings.unused_seed_line(rows, ExtractConfig()) == (
        "prompts: sd_seed, evaluation_seed are not used as seed; config.extract.seed_column=sd_seed uses it"
    )
    assert prompt_settings.unused_seed_line([{"a_seed": 1}], SteerConfig()).startswith("prompts: a_seed is not used")
    assert prompt_settings.unused_seed_line(rows, ExtractConfig(seed_column="sd_seed")) == ""
    assert prompt_settings.unused_seed_line([{"prompt": "a", "seed": 1}], ExtractConfig()) == ""


def test_images_of_one_command_have_one_size():
    settings = PromptSettings(None, 1.0, 64, 32)
    assert prompt_settings.one_size([settings, dataclasses.replace(settings, seed=3)]) == (64, 32)
    with pytest.raises(InputError, match=r"images of 2 sizes .32 x 64, 8 x 64 pixels."):
        prompt_settings.one_size([settings, dataclasses.replace(settings, width=8)])


def test_an_offset_is_added_to_the_seed_of_a_prompt():
    assert prompt_settings.added(None, 3) == 3
    assert prompt_settings.added(10, 3) == 13
    assert prompt_settings.added(2**64 - 1, 1) == 0  # torch takes 64 bits
