"""/tokenize, /detokenize and /tokenizer_info, as clients of vLLM ask them."""

from typing import Any

import httpx
import pytest
from fake_engine import INFO, Client, FakeEngine, error_of, say
from test_metrics import scrape, value


def ask(client: Client, path: str, **fields: Any) -> httpx.Response:
    return client.request("POST", path, json=fields)


def test_a_text_there_and_back() -> None:
    with Client(FakeEngine(say())) as client:
        for text in ("", "é\0!", "🙂"):
            answer = ask(client, "/tokenize", prompt=text, add_special_tokens=False).json()
            tokens = list(text.encode())
            assert answer == {
                "count": len(tokens),
                "max_model_len": INFO.context,
                "tokens": tokens,
                "token_strs": None,
            }
            back = ask(client, "/detokenize", tokens=tokens, model="fake")
            assert back.json() == {"prompt": text}
        assert ask(client, "/detokenize", tokens=[0xFF, 65.0]).json() == {"prompt": "\ufffdA"}
        named = ask(client, "/tokenize", prompt="aé", return_token_strs=True).json()
        assert named["token_strs"] == ["a", "bytes:\\xc3", "bytes:\\xa9"]


def test_what_clients_look_for_in_the_tokenizer() -> None:
    with Client(FakeEngine(say())) as client:
        told = client.get("/tokenizer_info").json()
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (told["eos_token"], told["bos_token"], told["pad_token"]) == ("\0", None, "\0")
    assert told["model_max_length"] == INFO.context


@pytest.mark.parametrize(
    ("path", "fields", "status", "param"),
    [
        ("/tokenize", {}, 422, "prompt"),
        ("/tokenize", {"prompt": 5}, 422, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, 422, "messages"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/detokenize", {"tokens": [256]}, 422, "tokens"),
        ("/detokenize", {"tokens": "a"}, 422, "tokens"),
        ("/detokenize", {"tokens": [0.5]}, 422, "tokens"),
    ],
)
def test_refusals(path: str, fields: dict[str, Any], status: int, param: str) -> None:
    with Client(FakeEngine(say())) as client:
        response = ask(client, path, **fields)
        assert (response.status_code, error_of(response)["param"]) == (status, param)
        reason = error_of(response)["code"]
        assert value(scrape(client), "request_rejected_total", reason=reason) == 1
