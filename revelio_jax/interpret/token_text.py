"""Tokens as readable text, for CLIP, T5 and other SentencePiece tokenizers, BERT, and byte-level BPE.

Each token becomes a piece that includes the space next to it, so the joined pieces read as the prompt. A character
that takes several tokens, for example an emoji, appears in the piece of its last token.
"""

import codecs
import re
from collections.abc import Sequence

PART = "·"  # shown for a token whose character a later token completes
SPECIAL = re.compile(r"<\|[^|]*\|>|</?s>|<(pad|unk|bos|eos|mask)>|<extra_id_\d+>|\[(CLS|SEP|PAD|UNK|MASK)\]")
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece writes characters outside of its vocabulary as bytes


def _byte_letters() -> dict[str, int]:
    """Return the byte of each letter of byte-level BPE: printable bytes are themselves, the others count from 256."""
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printing)]
    return {chr(byte): byte for byte in printing} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_LETTERS = _byte_letters()


def special(token: str) -> bool:
    """Return whether a token stands for no text: start, end or padding."""
    return bool(SPECIAL.fullmatch(token))


def pieces(tokens: Sequence[str]) -> list[str]:
    """Return the text of each token, with its space; special tokens are unchanged."""
    if any(token.endswith("</w>") for token in tokens):
        return _from_bytes([token.replace("</w>", "Ġ") for token in tokens])
    if any("▁" in token for token in tokens):
        return _from_sentence_piece(tokens)
    if any("Ġ" in token for token in tokens):
        return _from_bytes(tokens)
    return [
        token.removeprefix("##") if token.startswith("##") or i == 0 or special(token) else f" {token}"
        for i, token in enumerate(tokens)
    ]


def word(token: str) -> str:
    """Return the text of a single token, without spaces."""
    return pieces([token])[0].strip() or token


def unread(prompt: str, shown: Sequence[str]) -> str:
    """Return the end of a prompt that is cut off because the encoder takes no more tokens; "" if nothing is cut off.

    ``shown`` are the pieces of the tokens. The result is "" too if tokens and prompt differ in more than spaces and
    case, since the end of the tokens is then unknown.
    """
    text = "".join(piece for piece in shown if piece != PART and not special(piece))
    read, at = "".join(text.split()).casefold(), 0
    for end, letter in enumerate(prompt):
        if letter.isspace():
            continue
        if read and at == len(read):
            return prompt[end:]
        if not read.startswith(letter.casefold(), at):
            return ""
        at += len(letter.casefold())
    return ""


def _from_bytes(tokens: Sequence[str]) -> list[str]:
    def read(token: str) -> bytes | None:
        return None if special(token) else b"".join(_byte(letter) for letter in token)

    return _decoded(tokens, read)


def _from_sentence_piece(tokens: Sequence[str]) -> list[str]:
    def read(token: str) -> bytes | None:
        if special(token):
            return None
        byte = BYTE.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()

    shown = _decoded(tokens, read)
    first = next((i for i, token in enumerate(tokens) if not special(token)), None)
    if first is not None:
        shown[first] = shown[first].lstrip()
    return shown


def _byte(letter: str) -> bytes:
    return bytes([BYTE_LETTERS[letter]]) if letter in BYTE_LETTERS else letter.encode()


def _decoded(tokens: Sequence[str], read) -> list[str]:
    """Decode UTF-8 across token boundaries. ``read`` returns the bytes of a token, None for a special token."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    shown: list[str] = []
    for token in tokens:
        data = read(token)
        if data is None:
            _end(decoder, shown)
            shown.append(token)
        else:
            shown.append(decoder.decode(data) or PART)
    _end(decoder, shown)
    return shown


def _end(decoder: codecs.IncrementalDecoder, shown: list[str]) -> None:
    left = decoder.decode(b"", True)  # an incomplete character
    decoder.reset()
    if left and shown:
        shown[-1] = left if shown[-1] == PART else shown[-1] + left
