"""Fit the tokenizers on the captions: byte-level BPE for CLIP, whole words for T5."""

import collections
import json
import math
import re
import string
import typing

from tokenizers import trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, T5Tokenizer

MAX_LENGTH = 24  # the longest caption has 23 tokens with its two end markers
VOCABULARY = 2500
T5_MAX_LENGTH = 20  # the longest caption has 18 tokens; attention sees the padding too


def fit(captions: list[str]) -> CLIPTokenizer:
    """Return a tokenizer fitted on ``captions``. Like CLIP's, it pads with the end marker, to ``MAX_LENGTH``."""
    backend = CLIPTokenizer().backend_tokenizer
    alphabet = sorted(ByteLevel.alphabet())
    backend.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            min_frequency=2,
            end_of_word_suffix="</w>",
            initial_alphabet=alphabet,
            special_tokens=[],
            show_progress=False,
        ),
    )
    merges: typing.Any = [tuple(m) for m in json.loads(backend.to_str())["model"]["merges"]]
    # The order of CLIP's tokens: bytes, bytes at the end of a word, merges, the two markers.
    tokens = alphabet + [byte + "</w>" for byte in alphabet] + [a + b for a, b in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)


def fit_words(captions: list[str]) -> T5Tokenizer:
    """Return a tokenizer with a token for every word of ``captions`` and letters for other words.

    It pads to ``T5_MAX_LENGTH``. A trained Unigram model would split some of the words.
    """
    space = "\u2581"  # SentencePiece writes it before a word
    texts = (space + text.replace(" ", space) for text in captions)
    counts = collections.Counter(piece for text in texts for piece in re.findall(rf"{space}?\w+|[^\w{space}]", text))
    total = counts.total()
    vocabulary = {"<pad>": 0.0, "</s>": 0.0, "<unk>": -30.0}
    vocabulary |= {piece: math.log(n / total) for piece, n in counts.most_common()}
    letters = string.ascii_letters + string.digits + string.punctuation
    vocabulary |= {letter: -20.0 for letter in space + letters if letter not in vocabulary}
    return T5Tokenizer(vocab=list(vocabulary.items()), extra_ids=0, model_max_length=T5_MAX_LENGTH)
