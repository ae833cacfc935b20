"""Which folder a model id means, and what is found on a machine."""

import threading

import pytest

from quantstudio.core import run_store
from quantstudio.core.errors import ModelNotFound
from quantstudio.core.library import ModelKind, list_models, resolve_model
from quantstudio.core.model_info import read_model_info
from quantstudio.core.paths import starter_model
from quantstudio.core.recipe import ModelSection, Recipe
from quantstudio.core.run_state import Status
from quantstudio.core.settings import Settings

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty Hugging Face cache."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("QUANTSTUDIO_HOME", str(tmp_path / "home"))
    return folder


@pytest.fixture
def cached(cache, make_model):
    """`owner/name` in the cache as the hub's client lays it out: two commits, `main` at the newer, files as links."""
    repo = cache / "models--owner--name"
    for commit in (OLD, NEW):
        folder = make_model(f"hub/models--owner--name/snapshots/{commit}")
        for number, file in enumerate(sorted(folder.iterdir())):
            blob = repo / "blobs" / f"{commit[0]}{number}"
            blob.parent.mkdir(exist_ok=True)
            file.rename(blob)
            file.symlink_to(f"../../blobs/{blob.name}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(NEW, encoding="utf-8")
    (repo / "refs" / "v1").write_text(OLD, encoding="utf-8")
    return repo


def test_starter_is_the_model_in_the_box():
    assert resolve_model(ModelSection()) == starter_model()


def test_a_folder_is_itself_absolute(make_model, monkeypatch):
    folder = make_model()
    assert resolve_model(ModelSection(id=str(folder))) == folder
    monkeypatch.chdir(folder.parent)
    assert resolve_model(ModelSection(id="model")) == folder


@pytest.mark.parametrize(("revision", "commit"), [("", NEW), ("main", NEW), ("v1", OLD), (OLD, OLD)])
def test_a_cached_model_is_its_snapshot_whose_links_are_fine(cached, revision, commit):
    folder = resolve_model(ModelSection(id="owner/name", revision=revision))
    assert folder == cached / "snapshots" / commit
    assert read_model_info(folder).name == "owner/name"


@pytest.mark.parametrize("revision", ["v2", "../../..", "c" * 40, "refs/../v1"])
def test_a_revision_that_is_not_in_the_cache(cached, revision):
    with pytest.raises(ModelNotFound, match="not at revision") as caught:
        resolve_model(ModelSection(id="owner/name", revision=revision))
    assert caught.value.field == "model.revision"


def test_a_folder_here_does_not_shadow_the_cache(cached, make_model, monkeypatch):
    here = make_model("work/owner/name")
    monkeypatch.chdir(here.parent.parent)
    assert resolve_model(ModelSection(id="owner/name")) == cached / "snapshots" / NEW
    assert resolve_model(ModelSection(id="./owner/name")) == here


def test_a_folder_of_that_name_serves_when_the_cache_has_none(cache, make_model, monkeypatch):
    here = make_model("work/owner/name")
    monkeypatch.chdir(here.parent.parent)
    assert resolve_model(ModelSection(id="owner/name")) == here


def test_what_is_nowhere_is_said_with_what_to_do(cache):
    with pytest.raises(ModelNotFound, match="quantstudio download nobody/nothing"):
        resolve_model(ModelSection(id="nobody/nothing"))
    with pytest.raises(ModelNotFound, match="There is no folder"):
        resolve_model(ModelSection(id="/no/such/folder"))


def test_everything_on_the_machine_is_listed(cached, make_model, tmp_path):
    shelf = make_model("shelf/one").parent
    make_model("shelf/two", num_hidden_layers=9)
    (shelf / "no-model").mkdir()
    runs = tmp_path / "runs"
    done, waiting = run_store.create_run(runs, Recipe()), run_store.create_run(runs, Recipe())
    make_model("runs/" + done.name + "/model")
    header = run_store.read_header(done)
    run_store.write_header(done, header.model_copy(update={"status": Status.DONE}))
    settings = Settings(model_folders=(str(shelf), "/no/such/folder"), runs_folder=str(runs))

    found = {(entry.kind, entry.id): entry for entry in list_models(settings)}
    assert [kind for kind, _ in found] == ["starter", "folder", "folder", "folder", "cache", "run"]
    assert found[ModelKind.FOLDER, str(shelf / "one")].info.parameters > 0
    assert "6 of the model's 9 layers" in found[ModelKind.FOLDER, str(shelf / "two")].error
    assert "There is no folder" in found[ModelKind.FOLDER, "/no/such/folder"].error
    assert found[ModelKind.CACHE, "owner/name"].info.name == "owner/name"
    assert found[ModelKind.RUN, str(done / "model")].name == header.name
    assert not any(str(waiting) in entry_id for _, entry_id in found)
    for entry in found.values():
        assert (entry.info is None) is bool(entry.error)
        if entry.kind is not ModelKind.STARTER and entry.info:
            assert read_model_info(resolve_model(ModelSection(id=entry.id))) == entry.info


def test_a_model_found_twice_is_listed_once(cache, make_model):
    folder = make_model()
    settings = Settings(model_folders=(str(folder), str(folder)))
    assert [entry.kind for entry in list_models(settings)] == ["starter", "folder"]


def test_the_list_can_be_made_in_any_thread(cached, tmp_path):
    lists = []
    threads = [threading.Thread(target=lambda: lists.append(list_models(Settings()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert lists[0] == lists[1] == lists[2]
