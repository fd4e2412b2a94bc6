"""The hub's answers, from a server on this machine, in words that say what to do."""

from __future__ import annotations

import pytest

from paft_plugin.pipeline.hub import access
from tests.pipeline.hub import FakeHub

PATH = "/api/models/org/model/auth-check"


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
