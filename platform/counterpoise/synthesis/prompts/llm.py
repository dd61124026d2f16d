"""Language models: one behind an OpenAI-compatible endpoint, or a local one of transformers in a Ray actor."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from counterpoise.config import Llm
from counterpoise.config.identity import identity
from counterpoise.core.model_source import fingerprint, locate
from counterpoise.errors import ConfigError, CounterpoiseError, ModelError
from counterpoise.synthesis.prompts.contextual import Ask, CellPrompts, Request, collect

if TYPE_CHECKING:  # the client takes a second to import
    import openai

_WHERE = "prompts.contextual.llm"
_AT_ONCE = 4  # requests under way at an endpoint
_GLANCE = 5.0  # seconds that a check of an endpoint may take
_NO_LIST = (404, 405, 501)  # answers of servers without a list of models to a request for it
_RETRIES = 2  # repetitions of a request when an endpoint is overloaded or fails
_TOKENS = 4096  # at most, of a local model's answer, if they fit into its context


def identify(llm: Llm) -> dict[str, Any]:
    """Return the identity of a language model: model and settings, on which its answers depend.

    Raises:
        ModelError: There is no such local model.
    """
    settings = identity(llm, "pixels")
    if llm.endpoint:
        return {"endpoint": llm.endpoint.rstrip("/"), "model": llm.model, **settings}
    return {"weights": fingerprint(llm.model, llm.revision, f"{_WHERE}.model"), **settings}


def answers(requests: Sequence[Request], llm: Llm) -> Iterator[tuple[int, CellPrompts]]:
    """Ask for the prompts of all requests; yield each one's number and prompts as they arrive.

    Raises:
        ConfigError: The endpoint's key is not set.
        ModelError: The endpoint refuses or fails, or the local model cannot be loaded.
        SynthesisError: A cell does not get enough prompts.
    """
    yield from _from_endpoint(requests, llm) if llm.endpoint else _from_ray(requests, llm)


# -- an endpoint -------------------------------------------------------------------------------------------------------


def _from_endpoint(requests: Sequence[Request], llm: Llm) -> Iterator[tuple[int, CellPrompts]]:
    """Ask the endpoint for several requests at once.

    After a failure nothing more is sent, but answers under way are awaited and yielded, because they were paid for.
    """
    ask = endpoint(llm)
    failures: list[BaseException] = []

    def answer(request: Request) -> CellPrompts | None:
        return None if failures else collect(request, ask)

    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        jobs = {pool.submit(answer, request): number for number, request in enumerate(requests)}
        for job in as_completed(jobs):
            if error := job.exception():
                failures.append(error)
            elif prompts := job.result():
                yield jobs[job], prompts
        if failures:
            raise failures[0]
    finally:
        pool.shutdown(cancel_futures=True)


def endpoint(llm: Llm) -> Ask:
    """Return a function that sends an instruction to ``endpoint``/chat/completions and returns the answer.

    After overload, server errors and lost connections a request is sent up to three times, with pauses that the server
    may set.

    Raises:
        ConfigError: The environment variable with the key is not set.
    """
    import openai

    client = _client(llm, llm.timeout, _RETRIES)

    def ask(instruction: str, asked: int) -> str:
        with _explained(llm, llm.timeout, f"raise {_WHERE}.timeout, or ask for fewer prompts"):
            completion = client.chat.completions.create(
                model=llm.model,
                messages=[{"role": "user", "content": instruction}],
                temperature=llm.temperature,
                seed=openai.omit if llm.seed is None else llm.seed + asked,
            )
            return _content(completion, llm)

    return ask


def models_listed(llm: Llm) -> list[str] | None:
    """Return the names under which the endpoint serves models; None if it answers but has no such list.

    It sends one request, not repeated, to check an endpoint before a run.

    Raises:
        ConfigError: The endpoint's key is not set.
        ModelError: The endpoint does not answer within some seconds, or refuses.
    """
    import openai

    seconds = min(llm.timeout, _GLANCE)
    with _explained(llm, seconds, "check that the server is not busy and that the network lets requests through"):
        try:
            return [model.id for model in _client(llm, seconds, 0).models.list().data]
        except (ValueError, AttributeError, TypeError, openai.APIResponseValidationError):
            return None  # an answer, but not a list of models in OpenAI's format
        except openai.APIStatusError as error:
            if error.status_code in _NO_LIST:
                return None
            raise


def _client(llm: Llm, seconds: float, retries: int) -> openai.OpenAI:
    import openai

    key = _key(llm) or "none"  # the client requires one; servers without keys ignore it
    return openai.OpenAI(base_url=llm.endpoint, api_key=key, timeout=seconds, max_retries=retries)


def _key(llm: Llm) -> str | None:
    """Return the endpoint's key, if it has one; raise ConfigError if its environment variable is not set."""
    if not llm.api_key_env:
        return None
    key = os.environ.get(llm.api_key_env)
    if not key:
        where, found, remedy = f"{_WHERE}.api_key_env", f"no ${llm.api_key_env}", f"set {llm.api_key_env}"
        raise ConfigError("the endpoint's key is not set", where=where, found=found, remedy=remedy)
    return key


@contextmanager
def _explained(llm: Llm, seconds: float, if_silent: str) -> Iterator[None]:
    """Turn the client's errors into errors with a remedy."""
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        raise _refusal(error, llm) from error
    except (ValueError, openai.APIResponseValidationError) as error:  # not JSON at all
        raise _unreadable(f"{llm.endpoint}: {error}") from error
    except openai.APIConnectionError as error:
        silent = isinstance(error, openai.APITimeoutError)
        found = f"no answer in {seconds:g} s" if silent else f"{error.__cause__ or error}"
        raise ModelError(
            "the endpoint does not answer",
            where=f"{_WHERE}.endpoint",
            found=f"{error.request.url}: {found}",
            remedy=if_silent if silent else "start it, or correct the address",
        ) from error


def _refusal(error: openai.APIStatusError, llm: Llm) -> ModelError:
    message = " ".join(error.response.text.split())[:300]
    key = f"check the key in {llm.api_key_env}" if llm.api_key_env else "set api_key_env to the variable with the key"
    remedy = {
        401: key,
        403: key,
        404: "check the address (without /chat/completions, often ending in /v1) and the model's name",
        429: "wait, or ask for fewer prompts",
    }.get(error.status_code, "read the server's message; if it does not know a parameter, try seed=null")
    found = f"{error.request.url}: {error.status_code} {error.response.reason_phrase}"
    return ModelError(
        "the endpoint refuses", where=_WHERE, found=found + (f": {message}" if message else ""), remedy=remedy
    )


def _content(completion: Any, llm: Llm) -> str:
    """Return the text of a reply of /chat/completions; raise ModelError for anything else."""
    try:
        choice = completion.choices[0]
        content = choice.message.content
    except (AttributeError, IndexError, TypeError):
        choice, content = None, None
    if isinstance(content, str):
        return _whole_lines(content) if choice.finish_reason == "length" else content
    raise _unreadable(f"{llm.endpoint}: {str(completion)[:200]!r}")


def _unreadable(found: str) -> ModelError:
    return ModelError(
        "the endpoint's reply cannot be read",
        where=f"{_WHERE}.endpoint",
        found=found,
        allowed="a reply of /chat/completions with choices[0].message.content",
        remedy="check the address: the server must be OpenAI-compatible",
    )


def _whole_lines(text: str) -> str:
    """Remove the last line of a truncated answer."""
    return text.rpartition("\n")[0]


# -- a local model -----------------------------------------------------------------------------------------------------


def _from_ray(requests: Sequence[Request], llm: Llm) -> Iterator[tuple[int, CellPrompts]]:
    import ray

    from counterpoise.execution.cluster import connect

    locate(llm.model, f"{_WHERE}.model")
    connect()
    total = ray.cluster_resources().get("GPU", 0.0)
    if total < llm.num_gpus:  # the task would wait for ever
        where, allowed = f"{_WHERE}.num_gpus", f"{total:g} GPUs in all"
        raise ConfigError(
            "the cluster has too few GPUs for the language model", where=where, found=llm.num_gpus, allowed=allowed
        )
    model: Any = ray.remote(num_cpus=1, num_gpus=llm.num_gpus)(_Local).remote(llm)
    for number, request in enumerate(requests):
        answer = ray.get(model.collect.remote(request))
        if isinstance(answer, CounterpoiseError):
            raise answer
        yield number, answer


class _Local:
    """A Ray actor that loads the model once. User errors are returned, because Ray would wrap raised ones."""

    def __init__(self, llm: Llm) -> None:
        self._llm = llm
        self._ask: Ask | None = None

    def collect(self, request: Request) -> CellPrompts | CounterpoiseError:
        """Return the request's prompts, or the error."""
        try:
            self._ask = self._ask or local(self._llm)
            return collect(request, self._ask)
        except CounterpoiseError as error:
            return error


def local(llm: Llm) -> Ask:
    """Return a function that lets a causal language model of transformers answer an instruction, in this process.

    Raises:
        ModelError: The model cannot be loaded; later, if an instruction does not fit into its context.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    located, device = locate(llm.model, f"{_WHERE}.model"), "cuda" if llm.num_gpus else "cpu"
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(located, revision=llm.revision)
        model = AutoModelForCausalLM.from_pretrained(located, revision=llm.revision, dtype="auto").to(device).eval()
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        found = f"{llm.model}: {next(iter(str(error).strip().splitlines()), type(error).__name__)}"
        remedy = "use a text-generation model of transformers: a hub id, or a folder written by save_pretrained"
        raise ModelError(
            "the language model cannot be loaded", where=f"{_WHERE}.model", found=found, remedy=remedy
        ) from error

    def ask(instruction: str, asked: int) -> str:
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": instruction}]
            instruction = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        tokens = tokenizer(instruction, return_tensors="pt", add_special_tokens=not tokenizer.chat_template).to(device)
        used = tokens["input_ids"].shape[1]
        room = (getattr(model.config, "max_position_embeddings", None) or used + _TOKENS) - used
        if room <= 0:
            found, remedy = f"{used} tokens", "ask for fewer prompts or details, or use another model"
            raise ModelError(
                "the instruction does not fit into the language model's context",
                where=f"{_WHERE}.model",
                found=found,
                allowed=f"less than {used + room}",
                remedy=remedy,
            )
        # transformers samples from torch's global generators, and takes no other
        with torch.inference_mode(), torch.random.fork_rng([0] if llm.num_gpus else []):
            torch.manual_seed((llm.seed or 0) + asked)
            sampling: dict[str, Any] = {"do_sample": True, "temperature": llm.temperature} if llm.temperature else {}
            ended = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            output = model.generate(**tokens, max_new_tokens=min(_TOKENS, room), pad_token_id=ended, **sampling)
        answer = output[0, used:]
        text = tokenizer.decode(answer, skip_special_tokens=True)
        return text if len(answer) < min(_TOKENS, room) else _whole_lines(text)

    return ask
