"""The hub's answers, from a server on this machine, in words that say what to do; and the base's folder: as it is given, in a
hand-made cache of the hub's layout, and from that server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.pipeline.config import PaftConfig
from paft_plugin.pipeline.hub import access, base_folder
from tests.pipeline.hub import FakeHub

PATH = "/api/models/org/model/auth-check"
COMMIT = "0123456789" * 4
Make = Callable[[str], PaftConfig]


def test_allowed(hub: FakeHub) -> None:
    hub.answers[PATH] = (200, {}, b"{}")
    found = access("org/model")
    assert (found.problems, found.warnings) == ([], [])
    assert hub.asked == [PATH]


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {}, ["hf auth login"]),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, ["token", "hf auth login"]),
        (403, {"X-Error-Code": "GatedRepo"}, ["gated", "Accept its terms on", "/org/model", "hf auth login"]),
        (403, {}, ["Accept its terms"]),
        (404, {"X-Error-Code": "RepoNotFound"}, ["There is no model org/model", "Check the name"]),
    ],
)
def test_refused(hub: FakeHub, status: int, headers: dict[str, str], words: list[str]) -> None:
    hub.answers[PATH] = (status, headers, b"")
    found = access("org/model")
    assert len(found.problems) == 1
    assert found.warnings == []
    for word in words:
        assert word in found.problems[0]


def test_silence_and_faults_are_warnings(hub: FakeHub) -> None:
    hub.answers[PATH] = (500, {}, b"")
    assert "answers with 500" in access("org/model").warnings[0]
    hub.delay = 2.0
    found = access("org/model", timeout=0.2)
    assert found.problems == []
    assert "does not answer" in found.warnings[0]
    hub.close()
    assert "cannot be reached" in access("org/model").warnings[0]


def test_a_gated_data_set(hub: FakeHub) -> None:
    hub.answers["/api/datasets/org/data/auth-check"] = (403, {"X-Error-Code": "GatedRepo"}, b"")
    assert f"{hub.url}/datasets/org/data" in access("org/data", "dataset").problems[0]


def test_offline() -> None:
    found = access("org/model")
    assert found.problems == []
    assert "HF_HUB_OFFLINE" in found.warnings[0]


# --- the base model -----------------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    with resources.as_file(resources.files("paft_plugin.demo").joinpath("base")) as folder:
        return shutil.copytree(folder, tmp_path / "shipped")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Make:
    (tmp_path / "branch").mkdir()

    def make(base: str) -> PaftConfig:
        content = {"base": base, "sft": "branch", "preference": "branch", "output_dir": "run"}
        return PaftConfig.model_validate(content, context={"folder": tmp_path})

    return make


def fill(cache: Path, source: Path) -> Path:
    """Put a model into the cache as the hub's client does."""
    repository = cache / "models--org--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return shutil.copytree(source, repository / "snapshots" / COMMIT)


def test_a_folder_is_itself(config: Make, shipped: Path) -> None:
    assert base_folder(config(str(shipped)), download=False) == shipped


def test_in_the_cache(config: Make, cache: Path, shipped: Path) -> None:
    snapshot = fill(cache, shipped)
    assert base_folder(config("org/model"), download=False) == snapshot
    assert base_folder(config("org/model"), download=True) == snapshot  # nobody is asked: these tests are offline


@pytest.mark.usefixtures("cache")
def test_not_in_the_cache(config: Make) -> None:
    with pytest.raises(PaftError, match="hf download org/model"):
        base_folder(config("org/model"), download=False)
    with pytest.raises(PaftError, match="HF_HUB_OFFLINE is set"):
        base_folder(config("org/model"), download=True)


def test_only_a_part_is_in_the_cache(config: Make, cache: Path, shipped: Path) -> None:
    snapshot = fill(cache, shipped)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(PaftError, match="not in the local cache"):
        base_folder(config("org/model"), download=False)


def test_no_safetensors(config: Make, shipped: Path) -> None:
    (shipped / "model.safetensors").rename(shipped / "pytorch_model.bin")
    (shipped / "config.json").unlink()
    with pytest.raises(PaftError) as raised:
        base_folder(config(str(shipped)), download=True)
    assert len(raised.value.problems) == 2
    assert "no safetensors, and other formats (pickles) are not loaded" in str(raised.value)


@pytest.mark.usefixtures("cache")
def test_gated(config: Make, hub: FakeHub) -> None:
    hub.answers["/api/models/org/model/auth-check"] = (403, {"X-Error-Code": "GatedRepo"}, b"")
    with pytest.raises(PaftError, match="Accept its terms on"):
        base_folder(config("org/model"), download=True)


@pytest.mark.usefixtures("cache")
def test_missing(config: Make, hub: FakeHub) -> None:
    with pytest.raises(PaftError, match="no model org/model on the hub"):
        base_folder(config("org/model"), download=True)
    assert hub.asked == ["/api/models/org/model/auth-check"]


def test_downloaded(config: Make, cache: Path, shipped: Path, hub: FakeHub) -> None:
    (shipped / "pytorch_model.bin").write_bytes(b"a pickle")
    serve(hub, shipped)
    folder = base_folder(config("org/model"), download=True)
    assert folder == cache / "models--org--model" / "snapshots" / COMMIT
    assert (folder / "model.safetensors").read_bytes() == (shipped / "model.safetensors").read_bytes()
    assert not (folder / "pytorch_model.bin").exists()
    assert not any("pytorch_model.bin" in path for path in hub.asked)


def serve(hub: FakeHub, folder: Path) -> None:
    """Let the hub have a model, file by file."""
    files = sorted(folder.iterdir())
    info = {"id": "org/model", "sha": COMMIT, "siblings": [{"rfilename": file.name} for file in files]}
    body = json.dumps(info).encode()
    kind = {"Content-Type": "application/json"}
    hub.answers["/api/models/org/model/auth-check"] = (200, kind, b"{}")
    hub.answers["/api/models/org/model/revision/main"] = (200, kind, body)
    tree = [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name} for file in files]
    hub.answers[f"/api/models/org/model/tree/{COMMIT}"] = (200, kind, json.dumps(tree).encode())
    for file in files:
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{file.name}"', "Accept-Ranges": "none"}
        hub.answers[f"/org/model/resolve/{COMMIT}/{file.name}"] = (200, headers, file.read_bytes())
