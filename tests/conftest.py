"""Settings that every test wants: one thread (small models are slower with two), no telemetry, no network.

And a preflight that forks this process instead of importing axolotl anew for each test.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

# Before torch is imported anywhere, and inherited by every subprocess.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


class Forked:
    """A probe as a fork of this process, in which axolotl is imported but once."""

    def __init__(self, request: Path, log: Path, variables: Mapping[str, str]) -> None:
        self.process = multiprocessing.get_context("fork").Process(target=self._run, args=(request, log, variables))
        self.process.start()

    @staticmethod
    def _run(request: Path, log: Path, variables: Mapping[str, str]) -> None:
        os.environ.update(variables)
        with log.open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        from axolotl.integrations.base import PluginManager

        from paft_plugin.pipeline.preflight import probe

        PluginManager._instance = None  # a process that starts knows no plugin
        probe.main(request)

    def wait(self, timeout: float | None = None) -> None:
        self.process.join(timeout)

    def kill(self) -> None:
        self.process.kill()


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever asks the probe asks a fork."""
    import axolotl.cli.config
    import axolotl.utils.data.rl
    import axolotl.utils.data.sft  # noqa: F401

    from paft_plugin.pipeline.preflight import ask

    monkeypatch.setattr(ask, "start", Forked)
