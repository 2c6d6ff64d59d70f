"""Convert tokens to readable text, for CLIP, T5 and other SentencePiece tokenizers, BERT, and byte-level BPE.

Each token becomes a piece that includes the space next to it, so the joined pieces give the prompt. A character of
several tokens, for example an emoji, appears in the piece of its last token.
"""

import codecs
import re
from collections.abc import Sequence

PART = "·"  # shown for a token whose character a later token completes
SPECIAL = re.compile(r"<\|[^|]*\|>|</?s>|<(pad|unk|bos|eos|mask)>|<extra_id_\d+>|\[(CLS|SEP|PAD|UNK|MASK)\]")
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece writes characters outside of its vocabulary as bytes


def _byte_letters() -> dict[str, int]:
    """Return the byte of each letter of byte-level BPE. Printable bytes map to themselves, the others from 256 on."""
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printing)]
    return {chr(byte): byte for byte in printing} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_LETTERS = _byte_letters()


def is_special(token: str) -> bool:
    """Return whether a token represents no text: start, end or padding."""
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
        token.removeprefix("##") if token.startswith("##") or i == 0 or is_special(token) else f" {token}"
        for i, token in enumerate(tokens)
    ]


def word(token: str) -> str:
    """Return the text of a single token, without spaces."""
    return pieces([token])[0].strip() or token


def truncated_end(prompt: str, shown: Sequence[str]) -> str:
    """Return the end of a prompt that the encoder truncates, "" if it truncates nothing.

    ``shown`` are the pieces of the tokens. The result is also "" if tokens and prompt differ in more than spaces and
    case, because the end of the tokens is then unknown.
    """
    text = "".join(piece for piece in shown if piece != PART and not is_special(piece))
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
        return None if is_special(token) else b"".join(_byte(letter) for letter in token)

    return _decode(tokens, read)


def _from_sentence_piece(tokens: Sequence[str]) -> list[str]:
    def read(token: str) -> bytes | None:
        if is_special(token):
            return None
        byte = BYTE.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()

    shown = _decode(tokens, read)
    first = next((i for i, token in enumerate(tokens) if not is_special(token)), None)
    if first is not None:
        shown[first] = shown[first].lstrip()
    return shown


def _byte(letter: str) -> bytes:
    return bytes([BYTE_LETTERS[letter]]) if letter in BYTE_LETTERS else letter.encode()


def _decode(tokens: Sequence[str], read) -> list[str]:
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
    rest = decoder.decode(b"", True)  # an incomplete character
    decoder.reset()
    if rest and shown:
        shown[-1] = rest if shown[-1] == PART else shown[-1] + rest
