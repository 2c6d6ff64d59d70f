"""Tokens and their kinds; activations equal the encoder's own hidden states."""

import json
import types

import numpy as np
import pytest
import torch
import transformers

from extract import text_encoder
from revelio_jax.config import ExtractConfig
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.loading import TextEncoder
from revelio_jax.pipelines.tokens import BOS, CONTENT, EOS, PADDING, position_rule

PROMPTS = ["", "a flat emoji of cat", "red apple " * 40]


@pytest.fixture(scope="module")
def clip(sd):
    return TextEncoder("text_encoder", sd.text_encoder, sd.tokenizer)


def test_clip_pads_with_eos_and_the_first_eos_ends_the_prompt(clip):
    tokens = text_encoder.tokenize(clip, PROMPTS)
    length = clip.tokenizer.model_max_length
    assert tokens.ids.shape == (3, length)
    assert (tokens.ids[0, 1:] == clip.tokenizer.eos_token_id).all()
    words = len(clip.tokenizer(PROMPTS[1])["input_ids"]) - 2
    assert tokens.selected("all").sum(1).tolist() == [length] * 3
    assert tokens.selected("no_padding").sum(1).tolist() == [2, words + 2, length]
    assert tokens.selected("content").sum(1).tolist() == [0, words, length - 2]
    assert tokens.kinds[1, : words + 3].tolist() == [BOS] + [CONTENT] * words + [
        EOS,
        PADDING,
    ]


def test_kinds_do_not_depend_on_the_padding_token(fitted, sd):
    """SD 2 and SDXL's second tokenizer pad with '!'."""
    other = transformers.CLIPTokenizer(
        vocab=fitted.get_vocab(),
        merges=[tuple(m) for m in json.loads(fitted.backend_tokenizer.to_str())["model"]["merges"]],
        model_max_length=fitted.model_max_length,
        pad_token="!",
    )
    a = text_encoder.tokenize(TextEncoder("", sd.text_encoder, fitted), PROMPTS)
    b = text_encoder.tokenize(TextEncoder("", sd.text_encoder, other), PROMPTS)
    assert (a.ids != b.ids).any()
    np.testing.assert_array_equal(a.kinds, b.kinds)


def test_t5_has_no_bos_and_pads_with_zero(t5):
    tokens = text_encoder.tokenize(t5, ["", "cat", "a long word and more"])
    assert (tokens.ids[0] == [1] + [0] * 9).all()
    assert tokens.selected("content").sum(1).tolist() == [0, 4, 9]
    assert tokens.selected("no_padding").sum(1).tolist() == [1, 5, 10]


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_every_layer_is_the_residual_stream_after_it(clip, t5, kind):
    encoder = clip if kind == "clip" else t5
    prefix = "clip.layer" if kind == "clip" else "t5.block"
    layers = 3
    pipe = _Pipe(encoder)
    points = [hook_points.resolve(pipe, f"{prefix}.{i}") for i in range(layers)]
    tokens = text_encoder.tokenize(encoder, PROMPTS)
    hooks = [len(site.module._forward_hooks) for site in points]
    rows = text_encoder.activations(encoder, points, tokens, "float32")
    assert [len(site.module._forward_hooks) for site in points] == hooks
    with torch.inference_mode():
        states = encoder.model(torch.from_numpy(tokens.ids), output_hidden_states=True).hidden_states
    for i in range(layers):
        assert rows[f"{prefix}.{i}"].shape == (3, tokens.ids.shape[1], 16)
        if kind == "clip" or i < layers - 1:  # T5 reports its last hidden state after the final norm
            np.testing.assert_array_equal(rows[f"{prefix}.{i}"], states[i + 1])
    alone = text_encoder.activations(encoder, points[:1], tokens, "float32")
    np.testing.assert_array_equal(alone[f"{prefix}.0"], rows[f"{prefix}.0"])


class _Pipe:
    """A pipeline that holds one text encoder."""

    def __init__(self, encoder):
        self.text_encoder = self.text_encoder_2 = None
        if encoder.component == "text_encoder_2":
            self.transformer = None
        else:
            del self.text_encoder_2
            self.unet = None
        setattr(self, encoder.component, encoder.model)


def test_the_pass_ends_after_the_last_hook_point(clip):
    ran = []
    handles = [
        layer.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(_layers(clip.model))
    ]
    points = [hook_points.resolve(_Pipe(clip), "clip.layer.1")]
    text_encoder.activations(clip, points, text_encoder.tokenize(clip, ["a"]), "float32")
    for handle in handles:
        handle.remove()
    # The hook that ends the pass runs before the hooks of this test.
    assert ran == [0]


def _layers(model):
    return getattr(model, "text_model", model).encoder.layers


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_activations_are_rounded_once(clip, dtype):
    points = [hook_points.resolve(_Pipe(clip), "clip.layer.1")]
    tokens = text_encoder.tokenize(clip, PROMPTS)
    full = torch.from_numpy(text_encoder.activations(clip, points, tokens, "float32")["clip.layer.1"])
    half = text_encoder.activations(clip, points, tokens, dtype)["clip.layer.1"]
    assert half.dtype.name == dtype
    np.testing.assert_array_equal(half.astype(np.float32), full.to(getattr(torch, dtype)).float().numpy())


def _by_hand(encoder, tokens, selected):
    """Selected rows of the second to last layer, from one uncut pass per prompt."""
    with torch.inference_mode():
        alone = [
            encoder.model(torch.from_numpy(tokens.ids[i : i + 1]), output_hidden_states=True).hidden_states[2][
                0, torch.from_numpy(selected[i])
            ]
            for i in range(len(selected))
        ]
    return torch.cat(alone).numpy()


@pytest.mark.parametrize("rule", ["all", "no_padding", "content"])
@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_sorted_and_truncated_batches_give_the_rows_of_single_prompts(clip, t5, kind, rule):
    encoder = clip if kind == "clip" else t5
    prompts = ["a b c", "", "cat", "red apple cat", "cat " * 40, "b"]
    tokens = text_encoder.tokenize(encoder, prompts)
    site = hook_points.resolve(_Pipe(encoder), "clip.layer.1" if kind == "clip" else "t5.block.1")
    counts = []
    extract = ExtractConfig(positions=rule, batch_size=2)
    rows = text_encoder.rows(encoder, [site], tokens, range(1, 6), extract, counts.append)[site.name]
    selected = tokens.selected(rule)
    selected[0] = False  # not in the range
    sample, position = np.nonzero(selected)
    np.testing.assert_array_equal(rows["sample"], sample)
    np.testing.assert_array_equal(rows["position"], position)
    np.testing.assert_allclose(rows["activations"], _by_hand(encoder, tokens, selected), atol=1e-5)
    assert sum(counts) == 5


def test_short_batches_are_truncated_for_clip_but_not_for_t5(clip, t5):
    for encoder, name, longest in ((clip, "clip.layer.1", 4), (t5, "t5.block.1", 10)):
        site = hook_points.resolve(_Pipe(encoder), name)
        seen = []
        handle = site.module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))  # noqa: B023
        # The pass ends at a later hook point, so that it reaches the hook of this test.
        other = hook_points.resolve(_Pipe(encoder), name.replace("1", "2"))
        tokens = text_encoder.tokenize(encoder, ["cat", "a cat"])
        extract = ExtractConfig(positions="no_padding")
        text_encoder.rows(encoder, [other], tokens, range(2), extract, lambda count: None)
        handle.remove()
        assert seen == [longest], name


def test_auto_keeps_padding_in_clip_only():
    for name, kept in (("clip.layer.1", "all"), ("t5.block.1", "no_padding")):
        assert position_rule("auto", name) == kept


def test_bert_has_cls_and_sep_and_ignores_padding(bert):
    tokens = text_encoder.tokenize(bert, ["cat", "a cat a cat", ""])
    assert tokens.ids.shape == (3, 6)  # the length of the longest prompt
    kinds = [
        [BOS, CONTENT, EOS],
        [BOS, *[CONTENT] * 4, EOS],
        [BOS, EOS],
    ]
    assert [row[row != PADDING].tolist() for row in tokens.kinds] == kinds
    pipe = types.SimpleNamespace(encoder=bert.model)
    site = hook_points.resolve(pipe, "text.layer.1")
    rows = text_encoder.rows(bert, [site], tokens, range(3), ExtractConfig(), lambda count: None)[site.name]
    with torch.inference_mode():
        for i, prompt in enumerate(["cat", "a cat a cat", ""]):
            alone = bert.model(**bert.tokenizer(prompt, return_tensors="pt"), output_hidden_states=True)
            of_prompt = rows["activations"][rows["sample"] == i]
            np.testing.assert_allclose(of_prompt, alone.hidden_states[2][0], atol=1e-5)
