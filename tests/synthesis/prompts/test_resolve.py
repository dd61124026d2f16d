"""A run's prompts: from which source, asked for once, written where the user may edit them."""

import numpy as np
import pytest

from chat_server import chat, obedient
from counterpoise.config import Prompts
from counterpoise.errors import ConfigError, ModelError, SynthesisError
from counterpoise.storage.records import DamagedError
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.store import read
from counterpoise.storage.uri import open_store
from counterpoise.synthesis.prompts.prompt_file import read_prompts
from counterpoise.synthesis.prompts.resolve import answer_keys, resolve
from damage import DAMAGES


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store")


def llm_prompts(server, number=3, seed=0, **changes) -> Prompts:
    llm = {"model": "gpt", "endpoint": server.url, "seed": seed}
    return Prompts(contextual={"number": number, "llm": llm, **changes})


def test_where_prompts_come_from(tmp_path, store, names):
    template = resolve(Prompts(), names, store)
    assert (template.origin, template.counts) == ("the template", [[1, 1], [1, 1]])
    places = {"number": 3, "attributes": {"place": ["here", "there"], "time": ["now", "then"]}}
    saved = str(tmp_path / "saved.yaml")
    grammar = resolve(Prompts(contextual={**places, "save_to": saved}), names, store)
    assert (grammar.origin, grammar.counts) == ("a grammar", [[3, 3], [3, 3]])
    again = resolve(Prompts(file=saved), names, store)
    assert again.origin == f"the file {saved}"
    assert (again.prompts, again.digest) == (grammar.prompts, grammar.digest)
    assert template.plain == grammar.plain == again.plain == [
        ["a photo of a red star", "a photo of a blue star"],
        ["a photo of a red disc", "a photo of a blue disc"],
    ]  # fmt: skip
    assert store.list("") == []


def test_a_language_model_is_asked_once(store, names, serve):
    server = serve(obedient)
    prompts = llm_prompts(server)
    first = resolve(prompts, names, store)
    assert first.origin == "the language model gpt"
    assert first.counts == [[3, 3], [3, 3]]
    assert "blue" in first.prompts[1][1][0]
    assert "disc" in first.prompts[1][1][0]
    assert len(server.payloads) == 4
    server.close()
    second = resolve(prompts, names, store)
    assert second == first
    assert len(store.list("prompts/")) == 4


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"number": 2}, {"task": "paintings"}, {"details": ["Say when."]}, {"format": "A"}], ids=str
)
def test_whoever_asks_for_something_else_is_not_given_the_old(store, serve, changes):
    server, names = serve(obedient), LabelSpace(("star",))
    first = resolve(llm_prompts(server), names, store)
    assert resolve(llm_prompts(server, **changes), names, store).digest != first.digest
    assert len(server.payloads) == 2


def test_what_was_answered_before_a_failure_is_kept(store, names, serve):
    broken = True

    def reply(payload, number):
        text = payload["messages"][0]["content"]
        return (500, b"") if broken and '"disc" and "blue"' in text else obedient(payload, number)

    server = serve(reply)
    with pytest.raises(ModelError, match="500"):
        resolve(llm_prompts(server), names, store)
    kept, broken, asked = len(store.list("prompts/")), False, len(server.payloads)
    assert resolve(llm_prompts(server), names, store).counts == [[3, 3], [3, 3]]
    assert len(server.payloads) - asked == 4 - kept


def test_what_was_refused_is_said(store, serve):
    def reply(payload, number):
        return chat("1. A photo of a star\n2. A photo of a moon") if number == 0 else obedient(payload, number)

    found = resolve(llm_prompts(serve(reply)), LabelSpace(("star",)), store)
    assert found.refused == [{"cell": "star", "prompt": "A photo of a moon", "reason": "it does not say 'star'"}]
    assert found.counts == [[3]]


def test_an_edited_file_is_kept_and_said_so(tmp_path, store, names, serve):
    saved = tmp_path / "prompts.jsonl"
    prompts = llm_prompts(serve(obedient), save_to=str(saved))
    first = resolve(prompts, names, store)
    assert read_prompts(str(saved), names) == first.prompts
    edited = saved.read_text().replace("of a star", "of a shining star")
    saved.write_text(edited)
    with pytest.warns(UserWarning, match=r"set prompts\.file to it"):
        assert resolve(prompts, names, store) == first
    assert saved.read_text() == edited
    mine = resolve(Prompts(file=str(saved)), names, store)
    assert "shining star" in mine.prompts[0][0][0]
    assert mine.digest != first.digest


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_answers(store, serve, damage):
    prompts, names = llm_prompts(serve(obedient)), LabelSpace(("star",))
    resolve(prompts, names, store)
    (key,) = store.list("prompts/")
    assert answer_keys(prompts, names) == [key]
    resolve(prompts, LabelSpace(("moon",)), store)
    (other,) = {*store.list("prompts/")} - {key}
    store.replace(key, DAMAGES[damage](read(store, key), read(store, other)))
    with pytest.raises(DamagedError, match="--repair"):
        resolve(prompts, names, store)


def test_mistakes_are_found_before_anybody_is_asked(tmp_path, store, names, serve):
    server = serve(obedient)
    with pytest.raises(ConfigError, match="colour"):
        resolve(Prompts(template="{colour} {label}", contextual=llm_prompts(server).contextual), names, store)
    assert server.payloads == []
    with pytest.raises(SynthesisError, match="not give enough prompts"):
        resolve(llm_prompts(serve(lambda *_: chat("no"))), names, store)
    assert store.list("prompts/") == []


def test_a_pool_draws_the_prompts_of_its_set(make_pool, serve):
    """A shard is drawn with the prompts that the set has for its indices; the set decides the pool's address."""
    from counterpoise.generators.text_to_image import TextToImage
    from counterpoise.synthesis.pool import actors
    from counterpoise.synthesis.pool import shard as making
    from counterpoise.synthesis.pool.address import Shard
    from counterpoise.synthesis.pool.sampling_spec import SamplingSpec

    contextual = llm_prompts(serve(obedient), number=5).contextual
    pool = make_pool(prompts={"contextual": contextual.model_dump()})
    assert pool.digest != make_pool().digest
    work, shard, asked = SamplingSpec.of(pool), Shard(1, 0, 2), pool.generation["prompts"][1][0]
    generator = TextToImage(work.generator, "cpu", "float32")
    drawn = []

    def sample(prompts, *rest):
        drawn.append(list(prompts))
        return generator.sample(prompts, *rest)

    table = making.to_table(making.draw(sample, work.recipe, shard), work.recipe)
    for number in range(3):
        actors.commit(pool.store, pool.digest, Shard(1, 0, number), table, {"device": "cpu"})
    view = pool.view(np.arange(8) + 8 * pool.index.ranks([shard]))
    assert len(set(asked)) == 5
    assert view.column("index").tolist() == list(range(16, 24))
    assert drawn == [view.column("prompt").tolist()] == [[asked[index % 5] for index in range(16, 24)]]
    assert all("red" in prompt and "disc" in prompt for prompt in asked)


def test_the_shipped_example_is_in_the_generators_words(store):
    """Each prompt is one that the testbed's generator learned, and each background comes equally often."""
    from counterpoise.config.compose import load

    names = LabelSpace(("circle", "ring", "cross", "crescent"), ("red", "blue"))
    found = resolve(load("shapes_contextual")[0].prompts, names, store)
    places = ("grass", "sand", "water", "brick")
    assert found.prompts[1][0] == [f"a photo of a red ring on {place}" for place in places]
    assert found.plain[1][0] == "a photo of a red ring"
    assert found.counts == [[4, 4]] * 4
