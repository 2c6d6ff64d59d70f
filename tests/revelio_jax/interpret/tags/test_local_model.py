"""Tags by an image-text-to-text model of transformers: a real architecture, tiny, with random weights."""

import json
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest
import tokenizers
import torch
import transformers

from revelio_jax.config import TagsConfig
from revelio_jax.errors import InputError
from revelio_jax.interpret.latents import results
from revelio_jax.interpret.latents.interpretation import interpret
from revelio_jax.interpret.tags import answers, command, local_model
from revelio_jax.interpret.tags.questions import Question
from tests.revelio_jax.interpret.conftest import PLANTED, as_png

SPECIAL = ["<pad>", "<s>", "</s>", "<image>"]
TEMPLATE = (
    "{% for message in messages %}<s>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def build_tokenizer():
    """Return a tokenizer with one token per byte."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )


@pytest.fixture(scope="session")
def llava(tmp_path_factory) -> str:
    """A folder with a LLaVA: CLIP's tower of 4 patches, a Llama of width 16, 260 tokens."""
    folder = tmp_path_factory.mktemp("models") / "llava"
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = build_tokenizer()
    tower = transformers.CLIPVisionConfig(image_size=32, patch_size=16, initializer_range=1.0, **width)
    text = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=8192,
        initializer_range=1.0,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **width,
    )
    config = transformers.LlavaConfig(vision_config=tower, text_config=text, image_token_index=3)
    torch.manual_seed(0)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return str(folder)


def options(model: str, **fields) -> TagsConfig:
    return TagsConfig(model=model, max_tokens=6, **fields)


def test_the_answer_equals_plain_greedy_decoding(llava):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), np.uint8)
    question = Question("label", "What is it?", tuple(as_png(one) for one in pixels))
    said = local_model.open_model(options(llava), "cpu").ask(question)

    model = transformers.LlavaForConditionalGeneration.from_pretrained(llava)
    processor = transformers.AutoProcessor.from_pretrained(llava)
    prompt = "<s>" + 3 * "<image>" + "What is it?"
    images = [PIL.Image.fromarray(array) for array in pixels]
    inputs = processor(text=prompt, images=images, return_tensors="pt", add_special_tokens=False)
    ids, made = inputs.pop("input_ids"), []
    inputs.pop("attention_mask")
    with torch.no_grad():
        while len(made) < 6 and made[-1:] != [2]:
            logits = model(input_ids=ids, pixel_values=inputs["pixel_values"], use_cache=False).logits
            made.append(int(logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([made[-1:]])], 1)
    assert said == processor.decode(made, skip_special_tokens=True)


def test_the_answer_depends_on_the_images(llava):
    model = local_model.open_model(options(llava), "cpu")
    random = np.random.default_rng(1)
    seen = {
        model.ask(Question("label", "?", (as_png(random.integers(0, 256, (32, 32, 3), np.uint8)),))) for _ in range(8)
    }
    assert len(seen) > 1
    assert model.ask(Question("label", "?")) == model.ask(Question("label", "?"))  # without images


def test_a_run_is_tagged_with_cached_answers(image_config, with_fields, llava, tmp_path):
    shutil.copytree(pathlib.Path(image_config.run, "export"), tmp_path / "run" / "export")
    fields = {"model": llava, "max_tokens": 6, "images": 2, "held_out": 8}
    config = with_fields(image_config, run=str(tmp_path / "run"), model={"device": "cpu"}, tags=fields)
    interpret(config)
    made = command.tag(config, [PLANTED])
    assert made.answers.requested == len((tmp_path / "run" / answers.NAME).read_text().splitlines()) >= 2
    [row] = results.load(results.folder_of(config.run)).tags().to_pylist()
    assert row["model"] == llava
    assert f"1 latents, {made.answers.requested} new answers" in command.summary(made)
    assert command.tag(config, [PLANTED]).answers.requested == 0


def test_new_weights_in_the_same_folder_change_the_identity(llava, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(llava, folder)
    before = local_model.open_model(options(str(folder)), "cpu").identity
    assert local_model.open_model(options(str(folder)), "cpu").identity == before
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    assert local_model.open_model(options(str(folder)), "cpu").identity != before


def test_folders_without_a_usable_model_are_refused(llava, tmp_path):
    with pytest.raises(InputError, match=r"config\.tags\.model is .*must be an image-text-to-text model"):
        local_model.open_model(options(str(tmp_path / "nothing")), "cpu")
    folder = tmp_path / "silent"
    shutil.copytree(llava, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="its processor has no chat template"):
        local_model.open_model(options(str(folder)), "cpu")
    folder = tmp_path / "broken"
    shutil.copytree(llava, folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"must be an image-text-to-text model"):
        local_model.open_model(options(str(folder)), "cpu").ask(Question("label", "?"))


def test_a_model_of_another_class_is_refused(llava, tmp_path):
    folder = tmp_path / "text"
    shutil.copytree(llava, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config["text_config"] | {"model_type": "llama"}))
    with pytest.raises(InputError, match="must be an image-text-to-text model"):
        local_model.open_model(options(str(folder)), "cpu").ask(Question("label", "?"))


def test_a_failing_question_is_one_line(llava):
    with pytest.raises(InputError, match="a question with 0 images") as error:
        local_model.open_model(options(llava), "cpu").ask(Question("label", "an <image> that is not there"))
    assert "\n" not in str(error.value)
