"""Asking a language model: a server over HTTP, and a tiny local one that only knows noise."""

import json
import time

import pytest

from chat_server import chat, obedient
from counterpoise.config import Llm
from counterpoise.errors import ConfigError, ModelError, SynthesisError
from counterpoise.storage.schema import LabelSpace
from counterpoise.synthesis.prompts import llm as asking
from counterpoise.synthesis.prompts.contextual import requests


def ask(server, text="hello", **changes):
    return asking.endpoint(Llm(model="tiny", endpoint=server.url, **changes))(text, 0)


def test_a_question_and_its_answer(serve, monkeypatch):
    monkeypatch.setenv("SECRET", "xyz")
    server = serve(lambda *_: chat("the answer"), key="xyz")
    assert ask(server, api_key_env="SECRET", temperature=0.5, seed=3) == "the answer"
    assert server.payloads == [
        {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.5, "seed": 3}
    ]
    assert server.headers[0]["Content-Type"] == "application/json"


def test_another_answer_for_the_same_cell_has_another_seed(serve):
    server = serve(lambda *_: chat("x"))
    question = asking.endpoint(Llm(model="m", endpoint=f"{server.url}/", seed=3))
    question("one", 0)
    question("two", 1)
    assert [payload["seed"] for payload in server.payloads] == [3, 4]
    assert ask(server, seed=None) == "x"
    assert "seed" not in server.payloads[-1]


def test_an_answer_that_was_cut_off_loses_its_last_line(serve):
    assert ask(serve(lambda *_: chat("1. whole\n2. half of", "length"))) == "1. whole"


@pytest.mark.parametrize(
    ("status", "hint", "times"),
    [
        (400, "seed=null", 1),
        (401, "api_key_env", 1),
        (404, "without /chat/completions", 1),
        (429, "wait", 3),
        (500, "read the server's message", 3),
    ],
)
def test_refusals(serve, status, hint, times):
    server = serve(lambda *_: (status, b'{"error": {"message": "because"}}'))
    with pytest.raises(ModelError) as caught:
        ask(server)
    message = str(caught.value)
    assert f"{status}" in message
    assert "because" in message
    assert hint in message
    assert len(server.payloads) == times


def test_what_passes_is_no_error(serve):
    server = serve(lambda _, number: chat("at last") if number == 2 else (503, b""))
    assert ask(server) == "at last"


def test_a_wrong_key_and_none(serve, monkeypatch):
    monkeypatch.setenv("SECRET", "abc")
    server = serve(lambda *_: chat("x"), key="xyz")
    with pytest.raises(ModelError, match="check the key in SECRET") as caught:
        ask(server, api_key_env="SECRET")
    assert "abc" not in str(caught.value)
    monkeypatch.delenv("SECRET")
    with pytest.raises(ConfigError, match="set SECRET"):
        ask(server, api_key_env="SECRET")
    assert len(server.payloads) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"<html>hello</html>",
        b"{}",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b"\xff",
    ],
)
def test_garbage(serve, body):
    with pytest.raises(ModelError, match="cannot be read") as caught:
        ask(serve(lambda *_: (200, body)))
    assert "OpenAI-compatible" in str(caught.value)


def test_nobody_there_and_nobody_answering(serve):
    with pytest.raises(ModelError, match="does not answer") as caught:
        asking.endpoint(Llm(model="m", endpoint="http://127.0.0.1:9/v1"))("hello", 0)
    assert "refused" in str(caught.value)
    server = serve(lambda *_: time.sleep(2.0) or chat("late"))
    with pytest.raises(ModelError, match=r"no answer in 0\.1 s"):
        ask(server, timeout=0.1)


# -- prompts for cells -------------------------------------------------------------------------------------------------


def wanted(names, llm, number=4):
    from counterpoise.config import Prompts

    return requests(Prompts(contextual={"number": number, "llm": llm}), names)


def test_all_cells_get_their_prompts(serve, names):
    server = serve(obedient)
    llm = Llm(model="m", endpoint=server.url)
    found = dict(asking.answers(wanted(names, llm.model_dump()), llm))
    assert sorted(found) == [0, 1, 2, 3]
    assert all(len(cell.prompts) == 4 and not cell.refused for cell in found.values())
    assert all("disc" in prompt and "red" in prompt for prompt in found[2].prompts)
    assert len(server.payloads) == 4


def test_partial_answers_are_asked_again(serve, names):
    def stingy(payload, number):
        status, body = obedient(payload, number)
        reply = json.loads(body)
        reply["choices"][0]["message"]["content"] = reply["choices"][0]["message"]["content"].splitlines()[0]
        return status, json.dumps(reply).encode()

    server = serve(stingy)
    llm = Llm(model="m", endpoint=server.url)
    found = dict(asking.answers(wanted(names, llm.model_dump(), number=3), llm))
    assert all(len(set(cell.prompts)) == 3 for cell in found.values())
    assert len(server.payloads) == 12


def test_answers_that_never_carry_the_words(serve, names):
    llm = Llm(model="m", endpoint=serve(lambda *_: chat("1. A photo of a cat\n2. A photo of a dog")).url)
    with pytest.raises(SynthesisError, match=r"0 of 4 in 5 answers; refused: 10 because it does not say"):
        list(asking.answers(wanted(names, llm.model_dump()), llm))


def test_after_a_failure_nobody_else_is_asked(serve):
    """More cells than are asked for at once: those that wait must neither be asked for nor be waited for."""
    server = serve(lambda *_: (401, b""))
    llm = Llm(model="m", endpoint=server.url)
    with pytest.raises(ModelError, match="401"):
        list(asking.answers(wanted(LabelSpace(tuple("abcdefghijklmnopqrstuvwxyz")), llm.model_dump()), llm))
    assert len(server.payloads) < 26


# -- a local model -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_llm(tmp_path_factory):
    """A GPT-2 with random weights: what it writes is noise."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llm")
    words = ["<unk>", "<end>", *"abcdefghijklmnopqrstuvwxyz", "write", "red", "star", "photo"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>").save_pretrained(folder)
    config = GPT2Config(vocab_size=len(words), n_positions=160, n_embd=16, n_layer=1, n_head=2, eos_token_id=1,
                        bos_token_id=1)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_a_local_model_answers_in_words_and_repeats_itself_only_for_the_same_seed(tiny_llm):
    question = asking.local(Llm(model=str(tiny_llm), seed=1))
    first = question("write a red star photo", 0)
    assert set(first.split()) <= {"<unk>", *"abcdefghijklmnopqrstuvwxyz", "write", "red", "star", "photo"}
    assert question("write a red star photo", 0) == first
    assert asking.local(Llm(model=str(tiny_llm), seed=0))("write a red star photo", 1) == first
    assert question("write a red star photo", 1) != first
    greedy = asking.local(Llm(model=str(tiny_llm), temperature=0.0))
    assert greedy("write", 0) == greedy("write", 1)


def test_an_instruction_that_is_too_long(tiny_llm):
    with pytest.raises(ModelError, match="does not fit") as caught:
        asking.local(Llm(model=str(tiny_llm)))("a " * 200, 0)
    assert "200 tokens" in str(caught.value)


def test_models_that_are_not_there(tmp_path, tiny_models):
    for model, message in [(tmp_path / "none", "does not exist"), (tiny_models / "clip", "cannot be loaded")]:
        with pytest.raises(ModelError, match=message) as caught:
            asking.local(Llm(model=str(model)))
        assert caught.value.where == "prompts.contextual.llm.model"


@pytest.mark.usefixtures("ray_cluster")
def test_through_ray_noise_is_an_error_that_says_so(tiny_llm, names):
    """Also that the user's mistake comes back from the actor as what it is."""
    llm = Llm(model=str(tiny_llm))
    with pytest.raises(SynthesisError, match="does not give enough prompts for star × red") as caught:
        list(asking.answers(wanted(names, llm.model_dump()), llm))
    assert "0 of 4 in 5 answers" in str(caught.value)
    with pytest.raises(ConfigError, match="too few GPUs for the language model"):
        list(asking.answers(wanted(names, llm.model_dump()), Llm(model=str(tiny_llm), num_gpus=1000)))


def test_who_is_asked_is_known_by_weights_or_address(tiny_llm, tmp_path):
    import shutil

    shutil.copytree(tiny_llm, tmp_path / "moved")
    assert asking.identify(Llm(model=str(tmp_path / "moved"))) == asking.identify(Llm(model=str(tiny_llm)))
    one, two = ({"model": "m", "endpoint": "http://a/v1"}, {"model": "m", "endpoint": "http://b/v1"})
    assert asking.identify(Llm(**one)) != asking.identify(Llm(**two))
    assert asking.identify(Llm(**one, timeout=3.0, api_key_env="X")) == asking.identify(Llm(**one))
