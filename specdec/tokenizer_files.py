"""The byte tokenizer as Hugging Face files: id = byte value, nothing added, nothing merged.

Byte-level BPE without merges, which other runtimes load as it lies.  JSON has no bytes, so each
is written as GPT-2's printable stand-in: itself where it prints in Latin-1, else a character from
U+0100 on.  Knows no model: this project encodes with `str.encode` and reads none of these files.
"""

from typing import Any

from specdec.config import VOCAB_SIZE


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


def tokenizer_json() -> dict[str, Any]:
    """tokenizer.json.  The end-of-document byte is no special token: text may contain any byte."""
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
        "added_tokens": [],
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
            "vocab": {character: byte for byte, character in enumerate(byte_alphabet())},
            "merges": [],
        },
    }


def tokenizer_config() -> dict[str, Any]:
    """tokenizer_config.json: the plain class, so that no model's own habits are applied."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": None,
        "pad_token": None,
        "unk_token": None,
    }
