"""What an inspected `axolotl train` run leaves with those of axolotl's loggers that work without a network.

Comet wants an account even offline. The trackio that axolotl 0.19 pins (0.19.0) refuses what transformers 5.16 hands it, with or
without this plugin.
"""

from __future__ import annotations

import json
import math
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from tests.end_to_end.runs import LORA, PLUGIN, axolotl_train, record, succeed

pytestmark = pytest.mark.slow

STEPS = 5
INSPECTED = [2, 4, STEPS]
HISTOGRAM = "train/paft/inspect/log10_delta"


@pytest.fixture(scope="module")
def run(write_config: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run that has all of them."""
    folder = tmp_path_factory.mktemp("inspected")
    loggers: dict[str, Any] = {
        "use_tensorboard": True,
        "use_wandb": True,
        "wandb_mode": "offline",
        "wandb_project": "paft",
        "use_mlflow": True,
        "mlflow_tracking_uri": f"sqlite:///{folder}/mlflow.db",
        "mlflow_experiment_name": "paft",
    }
    settings = {"paft_l1_lambda": 1e-3, "paft_inspect_steps": 2, "num_epochs": STEPS}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("WANDB_DIR", str(folder))
        environment.setenv("TENSORBOARD_LOGGING_DIR", str(folder / "events"))
        succeed(axolotl_train(write_config(folder, "run", **settings, **loggers, **PLUGIN, **LORA)))
    return folder


@pytest.fixture(scope="module")
def events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / "events"), size_guidance={"scalars": 0, "histograms": 0}).Reload()


def delta(run: Path) -> torch.Tensor:
    """All entries of the saved adapter's s·BA."""
    tensors = load_file(run / "run" / "adapter_model.safetensors")
    scale = LORA["lora_alpha"] / LORA["lora_r"]
    pairs = [(A, tensors[name.replace("lora_A", "lora_B")]) for name, A in tensors.items() if "lora_A" in name]
    return torch.cat([(scale * B.double() @ A.double()).flatten() for A, B in pairs])


def test_tensorboard_shows_the_saved_delta(run: Path, events: EventAccumulator) -> None:
    entries = delta(run).abs()
    expected = {"l1_norm": entries.sum(), "l2_norm": entries.norm(), "max": entries.max()}
    for name, value in expected.items():
        points = events.Scalars(f"train/paft/inspect/{name}")
        assert [point.step for point in points] == INSPECTED
        assert points[-1].value == pytest.approx(value.item(), rel=1e-5)
    assert record(run / "run")["l1_norm"] == pytest.approx(expected["l1_norm"].item(), rel=1e-5)
    kinds = {tag.split("/")[3] for tag in events.Tags()["scalars"] if tag.count("/") == 4}
    assert kinds == {f"{kind}_proj" for kind in ("q", "k", "v", "o", "gate", "up", "down")}


def test_tensorboard_has_the_histogram(run: Path, events: EventAccumulator) -> None:
    drawn = events.Histograms(HISTOGRAM)
    assert [event.step for event in drawn] == INSPECTED
    value = drawn[-1].histogram_value
    logs = delta(run).abs().log10()
    assert value.num == len(logs)
    assert value.max >= logs.max() > value.max - 0.18  # half an octave
    assert value.sum / value.num == pytest.approx(logs.mean().item(), abs=0.09)


def test_the_loss_is_as_it_was(events: EventAccumulator) -> None:
    """One a step, and not one more."""
    assert [point.step for point in events.Scalars("train/loss")] == list(range(1, STEPS + 1))


def wandb_history(path: Path) -> list[dict[str, Any]]:
    """What was logged into a `.wandb` file: protocol buffers in LevelDB's log format, cut where a block of 32 KiB ends."""
    content, position, record_bytes, rows = path.read_bytes(), 7, b"", []
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        length, part = struct.unpack("<HB", content[position + 4 : position + 7])
        record_bytes += content[position + 7 : position + 7 + length]
        position += 7 + length
        if part in (1, 4):  # whole, or the last of its parts
            history = wandb_internal_pb2.Record.FromString(record_bytes).history
            rows.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in history.item})
            record_bytes = b""
    return [row for row in rows if row]


def test_wandb_has_figures_and_histogram(run: Path, events: EventAccumulator) -> None:
    (path,) = (run / "wandb").glob("offline-run-*/*.wandb")
    rows = wandb_history(path)
    figures = {row["train/global_step"]: row for row in rows if "train/paft/inspect/max" in row}
    drawn = {row["train/global_step"]: row for row in rows if f"{HISTOGRAM}/_type" in row}
    assert list(figures) == list(drawn) == INSPECTED
    for tag in events.Tags()["scalars"]:
        if "paft/inspect" in tag:
            for point in events.Scalars(tag):
                assert figures[point.step][tag] == pytest.approx(point.value, rel=1e-6)
    for step, row in drawn.items():
        assert row[f"{HISTOGRAM}/_type"] == "histogram"
        assert sum(row[f"{HISTOGRAM}/values"]) == len(delta(run))
        low, high = row[f"{HISTOGRAM}/bins"][-2:]
        assert low <= math.log10(figures[step]["train/paft/inspect/max"]) < high


def test_mlflow_has_the_figures(run: Path, events: EventAccumulator) -> None:
    with sqlite3.connect(run / "mlflow.db") as database:
        logged = database.execute("select key, step, value from metrics where key like 'paft/inspect/%'").fetchall()
    found = {(name, step): value for name, step, value in logged}
    for tag in events.Tags()["scalars"]:
        if "paft/inspect" in tag:
            name = tag.removeprefix("train/").replace("@", "_")  # transformers drops what MLflow's names may not hold
            for point in events.Scalars(tag):
                assert found.pop((name, point.step)) == pytest.approx(point.value, rel=1e-6)
    assert not found
