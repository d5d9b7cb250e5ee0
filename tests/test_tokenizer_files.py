"""The tokenizer's files, read by transformers: a token is a byte, whatever text or bytes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from specdec.checkpoint import save_checkpoint
from specdec.tokenizer_files import byte_alphabet, end_token

CONTEXT = 64
TEXTS = [
    "",
    "plain",
    " leading and  double  spaces ",
    "don't , or . split",
    "Größe Übermäßig",
    "漢字かな交じり文",
    "👩‍👩‍👧‍👦 🇩🇪 🤔",
    "e\u0301 and \u00e9 stay apart",
    "\x00\x01\x02\x0b\x1b\x7f\x80\xad",
    "\x00",
    "\x00\x00 between \x00\n\x00",
    "Ā\x00Ā Ċ\nĊ",
    "\n\n\n\r\n\t\t\n",
    "<s></s><unk><pad><|endoftext|>",
    "".join(byte_alphabet()),
]


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


def directory(tmp_path_factory: pytest.TempPathFactory, end: int | None) -> Path:
    place = tmp_path_factory.mktemp("checkpoint")
    model = tiny_model(context=CONTEXT)
    model.config = replace(model.config, eos_token_id=end)
    save_checkpoint(place, model, None, torch.float32)
    return place


@pytest.fixture(scope="module", params=[None, 0, ord("\n"), ord("a"), 0xFF])
def read(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The end-of-document byte, and the tokenizer of a model that has it."""
    place = directory(tmp_path_factory, request.param)
    return request.param, AutoTokenizer.from_pretrained(place, local_files_only=True)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return directory(tmp_path_factory, 0)


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_the_bytes(read: Any, text: str) -> None:
    end, tokenizer = read
    ids = tokenizer(text).input_ids
    assert ids == list(text.encode())
    assert tokenizer.encode(text, add_special_tokens=True) == ids
    assert tokenizer.decode(ids) == text
    left = text.replace(end_token(end) or "nothing", "")
    assert tokenizer.decode(ids, skip_special_tokens=True) == left


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_tokens_of_any_text_are_its_bytes(read: Any, text: str) -> None:
    _, tokenizer = read
    ids = tokenizer(text).input_ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=12))
def test_bytes_that_are_no_text_are_replaced_as_python_does(read: Any, data: bytes) -> None:
    _, tokenizer = read
    assert tokenizer.decode(list(data)) == data.decode(errors="replace")


def test_every_byte_comes_back_alone_and_beside_a_zero(read: Any) -> None:
    _, tokenizer = read
    some = [bytes(pair) for byte in range(256) for pair in ([byte], [byte, 0], [0, byte])]
    assert tokenizer.batch_decode([list(one) for one in some]) == [
        one.decode(errors="replace") for one in some
    ]


@pytest.mark.slow
def test_every_character_comes_back(ended: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ended, local_files_only=True)
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    texts = ["".join(points[i : i + 1024]) for i in range(0, len(points), 1024)]
    every = tokenizer(texts).input_ids
    assert [bytes(ids) for ids in every] == [text.encode() for text in texts]
    assert tokenizer.batch_decode(every) == texts


def test_the_vocabulary_is_the_256_bytes_and_nothing_else(read: Any) -> None:
    end, tokenizer = read
    assert len(tokenizer) == tokenizer.vocab_size == 256
    names = byte_alphabet()
    if end_token(end) is not None:
        names[end] = chr(end)
    assert tokenizer.convert_ids_to_tokens(list(range(256))) == names
    assert tokenizer.convert_tokens_to_ids(names) == list(range(256))
    assert [byte_alphabet()[byte] for byte in b"a b"] == ["a", "Ġ", "b"]


def test_the_end_of_a_document_is_a_special_token_where_it_is_a_character(read: Any) -> None:
    end, tokenizer = read
    declared = None if end == 0xFF else end
    assert [end_token(byte) for byte in (0, 0xFF, None)] == ["\x00", None, None]
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == declared
    assert tokenizer.all_special_ids == ([] if declared is None else [declared])
    assert tokenizer.bos_token_id is None


def test_an_encoding_has_what_the_model_takes(read: Any) -> None:
    end, tokenizer = read
    assert tokenizer.model_max_length == CONTEXT
    assert tokenizer("ab").keys() == {"input_ids", "attention_mask"}
    if end_token(end) is not None:
        padded = tokenizer(["ab", "a"], padding=True)
        assert padded.input_ids == [[97, 98], [end, 97]]
        assert padded.attention_mask == [[1, 1], [0, 1]]
    else:
        with pytest.raises(ValueError, match="padding token"):
            tokenizer(["ab", "a"], padding=True)


def test_a_batch_continues_as_its_texts_do_alone(ended: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(ended, local_files_only=True, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(ended, local_files_only=True)
    prompts = ["def read(path):", "a", "import"]
    greedy = {"max_new_tokens": 12, "do_sample": False, "return_full_text": False}
    write = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    together = [one["generated_text"] for (one,) in write(prompts, batch_size=2, **greedy)]
    alone = []
    for prompt in prompts:
        encoded = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**encoded, max_new_tokens=12, do_sample=False)
        written = output[0, encoded.input_ids.shape[1] :]
        alone.append(tokenizer.decode(written, skip_special_tokens=True))
    assert together == alone
    assert all(alone)


def test_long_text_is_tokenized_in_one_piece(ended: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ended, local_files_only=True, model_max_length=10**6)
    text = "naïve text, 20 kB of it\n" * 800
    assert tokenizer(text).input_ids == list(text.encode())
