"""Search and details: the Hub's answers as plain values, and what the headers of a model tell without its weights."""

import json

import pytest

from quantstudio.core.errors import HubAnswerUnusable, HubRefused
from quantstudio.core.hub import Access, SearchQuery, Sort
from quantstudio.core.jobs import DetailsJob
from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import LayersSection, OnMisfit, Recipe
from quantstudio.core.schemes import W4A16
from quantstudio.engine.hub.answers import read_summary
from quantstudio.engine.hub.api import HubApi
from quantstudio.engine.hub.connection import save_token
from quantstudio.engine.hub.details import look_at


@pytest.fixture
def api(hub, connect, listener):
    return lambda: HubApi(connect(), listener)


def ids(page):
    return [model.id for model in page.models]


def test_filters_reach_the_hub(hub, make_llama, api):
    make_llama("ada/small")
    make_llama("ada/large", hidden=256)
    make_llama("bob/small")
    hub.gated.add("bob/small")
    search = api().search
    assert ids(search(SearchQuery(text="LARGE"))) == ["ada/large"]
    assert ids(search(SearchQuery(author="bob"))) == ["bob/small"]
    assert ids(search(SearchQuery(min_parameters=200_000))) == ["ada/large"]
    assert sorted(ids(search(SearchQuery(max_parameters=200_000)))) == ["ada/small", "bob/small"]
    assert ids(search(SearchQuery(gated=True))) == ["bob/small"]
    assert ids(search(SearchQuery(licence="mit"))) == []
    assert len(ids(search(SearchQuery(family="llama")))) == 3
    assert ids(search(SearchQuery(family="qwen2"))) == []
    assert ids(search(SearchQuery(sort=Sort.LIKES)))[0] in ("ada/small", "ada/large", "bob/small")
    row = search(SearchQuery(text="large")).models[0]
    assert (row.family, row.dtype, row.licence, row.gated) == ("llama", "BF16", "apache-2.0", False)
    assert row.download_bytes == 2 * row.parameters
    assert row.modified == "2026-01-02T03:04:05.000Z"


def test_pages_follow_each_other_and_end(hub, make_llama, api):
    names = [f"ada/m{number}" for number in range(5)]
    for name in names:
        make_llama(name, blocks=1)
    found, query = [], SearchQuery(limit=2)
    while True:
        page = api().search(query)
        found.append(ids(page))
        if not page.next_cursor:
            break
        query = query.model_copy(update={"cursor": page.next_cursor})
    assert [len(page) for page in found] == [2, 2, 1]
    assert sorted(id for page in found for id in page) == names


@pytest.mark.parametrize(
    "entry",
    [
        None,
        7,
        {},
        {"id": "../evil"},
        {"id": "a/b/c"},
        {"id": "a/<b>"},
        {"id": "a/" + "b" * 300},
        {"id": "-a/b"},
    ],
    ids=repr,
)
def test_rows_with_impossible_names_are_left_out(entry):
    assert read_summary(entry) is None


def test_nonsense_in_a_row_becomes_nothing():
    row = read_summary(
        {
            "id": "ada/small",
            "downloads": -1,
            "likes": "many",
            "lastModified": "<script>",
            "cardData": {"license": "<b>"},
            "config": {"model_type": ["x"], "architectures": "x"},
            "safetensors": {"parameters": {"BF16": 1e300, "<": 5, "F32": True}},
            "tags": [None, "license:mit"],
        }
    )
    assert (row.downloads, row.likes, row.modified, row.licence) == (0, 0, "", "mit")
    assert row.parameters is None


def test_details_say_what_the_folder_will_say(hub, make_llama, api, tmp_path):
    folder = make_llama(shards=2)
    details = look_at(DetailsJob(model="ada/small"), api())
    info, real = details.model_info(), read_model_info(folder)
    assert (info.parameters, info.nbytes, info.slots, info.tensors) == (
        real.parameters,
        real.nbytes,
        real.slots,
        real.tensors,
    )
    assert details.commit == hub.commit("ada/small")
    assert details.access is Access.OPEN
    assert details.card.strip() == "# A small Llama"
    assert details.licence_text == "Apache License\n"
    assert not details.problem
    kinds = {"w4a16", "w4a8", "w8a16", "w8a8", "w3a16", "w3a8", "w2a16", "w2a8"}
    assert {scheme.kind for scheme in details.schemes} == kinds
    assert sum(part.nbytes for part in details.parts) == info.nbytes
    down = next(kind for kind in details.layer_kinds if kind.name == "down_proj")
    assert (down.count, down.rows, down.columns) == (2, 64, 128)
    assert 128 in down.group_sizes
    wanted = {file.path for file in details.files if file.needed}
    assert "modeling_evil.py" not in wanted
    assert details.total_bytes == sum(file.size for file in details.files if file.needed)


def test_sizes_are_those_of_what_a_run_would_write_where_groups_do_not_fit(hub, make_llama, api):
    """Rows of 96 weights: groups of 128 do not divide them, so layers get 48, and the size is that of 4 bits all the
    same, not that of layers which stay."""
    make_llama(hidden=96)
    details = look_at(DetailsJob(model="ada/small"), api())
    info = details.model_info()
    found = {scheme.kind: scheme for scheme in details.schemes}
    recipe = Recipe(scheme=W4A16(), layers=LayersSection(on_misfit=OnMisfit.SMALLER))
    assert found["w4a16"].nbytes == make_plan(info, recipe).sizes.total < 0.5 * info.nbytes
    assert "smaller groups" in found["w4a16"].problem
    assert not found["w8a16"].problem


def test_details_do_not_fetch_weights(hub, make_llama, api):
    make_llama(hidden=512)
    size = (hub.root / "ada/small/model.safetensors").stat().st_size
    look_at(DetailsJob(model="ada/small"), api())
    asked = [request.range for request in hub.seen if request.path.endswith(".safetensors")]
    assert all(asked)
    assert hub.sent < size / 20


def test_quantized_versions_of_others_are_listed(hub, make_llama, api):
    make_llama("ada/small")
    folder = make_llama("bob/small-gptq")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    found = look_at(DetailsJob(model="ada/small"), api()).quantizations
    assert [(model.id, model.quantized) for model in found] == [("bob/small-gptq", "gptq")]


def test_a_gated_model_is_described_as_far_as_it_goes(hub, make_llama, api):
    make_llama()
    hub.gated.add("ada/small")
    details = look_at(DetailsJob(model="ada/small"), api())
    assert details.access is Access.SIGN_IN
    assert details.summary.parameters
    assert "accept the licence" in details.problem
    save_token("hf_goodgoodgoodgood")
    details = look_at(DetailsJob(model="ada/small"), api())
    assert details.access is Access.GRANTED
    assert details.packed_info


def test_a_model_that_cannot_be_used_says_why(hub, make_llama, api):
    folder = make_llama()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**6}))
    details = look_at(DetailsJob(model="ada/small"), api())
    assert "num_hidden_layers" in details.problem
    assert not details.packed_info


def test_pickles_are_announced(hub, make_llama, api):
    folder = make_llama()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    details = look_at(DetailsJob(model="ada/small"), api())
    assert details.pickle_only
    assert "pickle" in details.problem


def test_a_model_that_does_not_exist(hub, api):
    with pytest.raises(HubRefused, match="no model ada/nothing"):
        look_at(DetailsJob(model="ada/nothing"), api())


def test_answers_that_are_no_json(hub, make_llama, api, monkeypatch):
    make_llama()
    monkeypatch.setattr(hub, "describe", lambda repo: "[" * 100_000)
    with pytest.raises(HubAnswerUnusable):
        look_at(DetailsJob(model="ada/small"), api())
