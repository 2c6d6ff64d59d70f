"""Tokens of four real tokenizers against their own decoding."""

import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from revelio_jax.interpret import token_text

# Deadlines would fail on a busy machine.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

CORPUS = ["a flat emoji of a cat", "glossy 3d emoji of red apple", "café, naïve; 日本語 😀 مرحبا"]


@pytest.fixture(scope="module")
def clip():
    return transformers.AutoTokenizer.from_pretrained("extract/miniature/sd/tokenizer")


@pytest.fixture(scope="module")
def t5():
    return transformers.AutoTokenizer.from_pretrained("extract/miniature/flux/tokenizer_2")


@pytest.fixture(scope="module")
def byte_level():
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return tokenizer


@pytest.fixture(scope="module")
def bert():
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=90, special_tokens=["[UNK]"]))
    return tokenizer


def joined(shown):
    return "".join(piece for piece in shown if piece != token_text.PART and not token_text.is_special(piece))


@UNTIMED
@given(st.text())
def test_pieces_of_clip_read_as_it_decodes_them(clip, text):
    ids = clip(text)["input_ids"]
    shown = token_text.pieces(clip.convert_ids_to_tokens(ids))
    assert len(shown) == len(ids)
    decoded = clip.decode(ids, skip_special_tokens=True)
    # Texts that contain the tokenizer's own space marker are excluded.
    assert joined(shown).split() == decoded.replace(token_text.PART, "").split() or token_text.PART in text


@pytest.mark.parametrize("text", [*CORPUS, "Glossy 3D", "two  spaces", ""])
def test_pieces_of_t5_read_as_it_decodes_them(t5, text):
    ids = t5(text)["input_ids"]
    tokens = t5.convert_ids_to_tokens(ids)
    shown = token_text.pieces(tokens)
    kept = "".join(piece for piece in shown if piece != "</s>")
    assert kept == t5.decode(ids, clean_up_tokenization_spaces=False).removesuffix("</s>").strip()
    assert len(shown) == len(tokens)


@UNTIMED
@given(st.text(min_size=1))
def test_pieces_of_byte_level_bpe_are_the_text(byte_level, text):
    text = f"a {text}"
    tokens = byte_level.encode(text).tokens
    shown = token_text.pieces(tokens)
    assert len(shown) == len(tokens)
    assert joined(shown) == text.replace(token_text.PART, "") or token_text.PART in text


@pytest.mark.parametrize("text", ["a flatt emoji of cats", "redapple of 3dd"])
def test_pieces_of_bert_read_as_it_decodes_them(bert, text):
    encoded = bert.encode(text)
    assert any(token.startswith("##") for token in encoded.tokens)
    assert "".join(token_text.pieces(encoded.tokens)) == bert.decode(encoded.ids)


def test_a_character_of_several_tokens_appears_with_the_last():
    emoji = ["<|startoftext|>", "ð", "Ł", "ĺ", "Ģ</w>", "<|endoftext|>"]
    assert token_text.pieces(emoji) == ["<|startoftext|>", "·", "·", "·", "😀 ", "<|endoftext|>"]
    assert token_text.pieces(["▁a", "<0xC3>", "<0xA9>", "</s>"]) == ["a", "·", "é", "</s>"]


def test_an_incomplete_character_becomes_a_replacement_character():
    assert token_text.pieces(["a</w>", "ð", "Ł"]) == ["a ", "·", "\ufffd"]
    assert token_text.pieces(["a</w>", "ð", "<|endoftext|>"]) == ["a ", "\ufffd", "<|endoftext|>"]


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("glossy</w>", "glossy"),
        ("▁of", "of"),
        ("##ing", "ing"),
        ("Ġcat", "cat"),
        ("</s>", "</s>"),
        ("▁", "▁"),
    ],
)
def test_word_returns_the_text_of_one_token(token, shown):
    assert token_text.word(token) == shown


def test_truncated_end_returns_the_rest_of_the_prompt(clip):
    prompt = "Glossy emoji of  a Red Apple " * 8
    ids = clip(prompt, truncation=True, max_length=24)["input_ids"]
    shown = token_text.pieces(clip.convert_ids_to_tokens(ids))
    rest = token_text.truncated_end(prompt, shown)
    assert prompt.endswith(rest)
    assert ("".join(shown[1:-1]) + rest).lower().split() == prompt.lower().split()


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("a cat", ["a ", "cat "]),  # the encoder reads all of it
        ("a cat and", ["a ", "cut "]),  # the end of the part that was read is unknown
        ("a cat", []),
        ("", ["a "]),
    ],
)
def test_truncated_end_is_empty_if_nothing_is_truncated(prompt, shown):
    assert token_text.truncated_end(prompt, shown) == ""
