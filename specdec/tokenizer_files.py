"""The byte tokenizer as Hugging Face files: id = byte value, nothing added, nothing merged.

Byte-level BPE without merges, which other runtimes load as it lies.  JSON has no bytes, so each
is written as GPT-2's printable stand-in: itself where it prints in Latin-1, else a character from
U+0100 on.

The end-of-document byte is the special token that ends a text and pads a batch.  It is written as
the character that it is, so that a text that contains it keeps its bytes: the vocabulary has that
character in place of the stand-in.  A byte above 0x7F is no character by itself, so it is not
declared here.  Without an end-of-document byte there is no special token at all, since decoders
leave special tokens out on request.

Does not know where these files lie; this project encodes with `str.encode` and reads none of them.
"""

from typing import Any

from specdec.config import VOCAB_SIZE

FIRST_WITHOUT_CHARACTER = 0x80
"""In UTF-8 the bytes from here on are only parts of characters."""


def byte_alphabet() -> list[str]:
    """The stand-in of each byte 0..255.

    >>> [byte_alphabet()[byte] for byte in b"a b"]
    ['a', 'Ġ', 'b']
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    alphabet, stand_in = [], 0x100
    for byte in range(VOCAB_SIZE):
        if byte in printable:
            alphabet.append(chr(byte))
        else:
            alphabet.append(chr(stand_in))
            stand_in += 1
    return alphabet


def end_token(end_byte: int | None) -> str | None:
    """The special token that stands for the end-of-document byte, where one can.

    >>> [end_token(0), end_token(0xFF), end_token(None)]
    ['\\x00', None, None]
    """
    return chr(end_byte) if end_byte is not None and end_byte < FIRST_WITHOUT_CHARACTER else None


def tokenizer_json(end_byte: int | None) -> dict[str, Any]:
    """tokenizer.json."""
    end = end_token(end_byte)
    vocabulary, special_tokens = byte_alphabet(), []
    if end is not None:
        vocabulary[ord(end)] = end
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        special_tokens = [{"id": ord(end), "content": end, **flags, "special": True}]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special_tokens,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: byte for byte, token in enumerate(vocabulary)},
            "merges": [],
        },
    }


def tokenizer_config(end_byte: int | None, context: int) -> dict[str, Any]:
    """tokenizer_config.json: the plain class, so that no model's own habits are applied.

    Padding goes in front of a text, which a model that continues it needs.
    """
    end = end_token(end_byte)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": context,
        "padding_side": "left",
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": end,
        "pad_token": end,
        "unk_token": None,
    }
