"""A byte-level BPE in CLIPTokenizer form, fitted on the captions."""

import json

from tokenizers import trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

MAX_LENGTH = 24  # the longest caption takes 23 with its two end markers
VOCABULARY = 2500


def fit(captions: list[str]) -> CLIPTokenizer:
    """Fit a tokenizer; it pads with the end marker to ``MAX_LENGTH`` as CLIP's does."""
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
    merges = [tuple(m) for m in json.loads(backend.to_str())["model"]["merges"]]
    # CLIP's order of tokens: bytes, bytes that end a word, merges, the two markers.
    tokens = alphabet + [byte + "</w>" for byte in alphabet] + [a + b for a, b in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)
