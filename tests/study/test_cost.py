"""What a training has seen, by what its trainer left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paft_plugin.files import write_json
from paft_plugin.study.cost import Seen, seen_by

# The last entries of real trainings with axolotl 0.19, shortened: SFT, DPO and ORPO.
SFT = {"loss": 0.144, "step": 200, "tokens/total": 106360, "tokens/trainable": 37970}
DPO = {"loss": 0.61, "num_tokens": 261448.0, "step": 120}
ORPO = {"loss": 1.259, "nll_loss": 1.073, "step": 100}


@pytest.mark.parametrize(
    ("entry", "tokens"), [(SFT, 106360), (DPO, 261448), (ORPO, None), ({"num_tokens": "many"}, None)]
)
def test_a_training_is_one_whether_it_counts_tokens_or_not(
    entry: dict[str, Any], tokens: int | None, tmp_path: Path
) -> None:
    for step in (50, 100):
        state = {"global_step": step, "log_history": [{"loss": 2.0, "step": 1}, entry]}
        write_json(tmp_path / f"checkpoint-{step}" / "trainer_state.json", state)
    assert seen_by(tmp_path) == Seen(100, tokens)


def test_a_training_that_was_resumed_has_seen_what_it_saw_before(tmp_path: Path) -> None:
    # A joint training on the demo's rows with TRL 1.9, resumed at step 100; one that was not interrupted counts 729872.
    counts = {1: 1393.0, 50: 69758.0, 100: 139667.0, 110: 14154.0, 300: 281255.0, 520: 590205.0}
    entries = [{"step": step, "num_tokens": count} for step, count in counts.items()]
    write_json(tmp_path / "checkpoint-520" / "trainer_state.json", {"global_step": 520, "log_history": entries})
    write_json(tmp_path / "checkpoint-500" / "trainer_state.json", {"global_step": 500, "log_history": entries[:-1]})
    assert seen_by(tmp_path) == Seen(520, 729872)


def test_a_training_without_checkpoints_says_nothing(tmp_path: Path) -> None:
    write_json(tmp_path / "adapter_config.json", {})
    assert seen_by(tmp_path) == Seen(None, None)


def test_a_torn_state_is_a_training_of_which_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text('{"global_step": 5, "log_hist')
    assert seen_by(tmp_path) == Seen(5, None)
