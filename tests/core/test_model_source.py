"""Finding models: folders, folders in packages, hub ids; and knowing their weights again."""

import pytest

from counterpoise.core.model_source import fingerprint, is_folder, locate
from counterpoise.errors import ModelError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_folders(tmp_path, monkeypatch):
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("models/tiny", "./models/tiny", str(tmp_path / "models" / "tiny"), "~/models/tiny"):
        assert locate(name, "here") == str(tmp_path / "models" / "tiny")
    assert locate("local-dir:models/tiny", "here") == f"local-dir:{tmp_path}/models/tiny"


def test_hub_ids_are_left_alone():
    for name in ("stabilityai/sd-turbo", "gpt2", "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "ViT-B-32"):
        assert locate(name, "here") == name
        assert not is_folder(name)


def test_folders_in_packages(repository):
    assert locate("package:counterpoise/testbed", "here") == str(repository / "platform" / "counterpoise" / "testbed")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/no/such/folder", "does not exist"),
        ("./no-such-folder", "does not exist"),
        ("~/no-such-folder", "does not exist"),
        ("a/b/c", "does not exist"),
        ("", "no model is named"),
        (__file__, "a file"),
        ("local-dir:/no/such/folder", "does not exist"),
        ("package:counterpoise/no/such/folder", "does not exist"),
        ("package:no_such_package/models", "no Python package 'no_such_package'"),
        ("package:", "no Python package"),
    ],
)
def test_what_does_not_exist(model, message):
    with pytest.raises(ModelError, match=message) as caught:
        locate(model, "generator.model")
    assert caught.value.where == "generator.model"


def test_a_folder_is_known_by_its_files(tmp_path):
    folder = tmp_path / "a"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "weights").write_bytes(b"1")
    first = fingerprint(str(folder))
    (folder / "README.md").write_text("about")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("x")
    assert fingerprint(str(folder)) == first
    folder.rename(tmp_path / "b")
    assert fingerprint(str(tmp_path / "b")) == first
    (tmp_path / "b" / "unet" / "weights").write_bytes(b"22")
    second = fingerprint(str(tmp_path / "b"))
    assert second != first
    (tmp_path / "b" / "unet" / "weights").rename(tmp_path / "b" / "weights")
    assert fingerprint(str(tmp_path / "b")) not in (first, second)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A hub cache that holds one model, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = tmp_path / "models--owner--name"
    (model / "snapshots" / COMMIT).mkdir(parents=True)
    (model / "snapshots" / COMMIT / "model_index.json").write_text("{}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return tmp_path


def test_a_hub_id_is_known_by_its_commit(hub_cache):
    assert fingerprint("owner/name") == {"id": "owner/name", "revision": COMMIT}
    assert fingerprint("hf-hub:owner/name") == {"id": "owner/name", "revision": COMMIT}
    assert fingerprint("owner/other", "f" * 40) == {"id": "owner/other", "revision": "f" * 40}


def test_a_hub_id_that_cannot_be_had(hub_cache):
    with pytest.raises(ModelError, match="neither a folder nor available from the hub") as caught:
        fingerprint("owner/other", where="generator.model")
    assert "owner/other" in str(caught.value)
    with pytest.raises(ModelError, match="owner/name"):
        fingerprint("owner/name", "another-branch")
