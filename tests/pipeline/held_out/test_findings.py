"""What a run says of its rows before it starts: each kind of row that cannot be scored is one line, with how many there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from paft_plugin.errors import Findings
from tests.pipeline.room import Room
from tests.pipeline.rows import turn

Preflight = Callable[..., Findings]
PAIRS = {"field_prompt": "prompt", "field_chosen": "chosen", "field_rejected": "rejected"}
CHAT = {"type": "chat_template", "field_messages": "messages"}


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [turn("user", question), turn("assistant", answer)], **more}


def pair(index: int, chosen: str = "yes") -> dict[str, Any]:
    return {"prompt": f"say {index}", "chosen": chosen, "rejected": "no"}


def test_every_kind_of_row_that_is_not_held_out_is_one_line_with_a_count(room: Room, check: Preflight) -> None:
    chats = [chat(f"add {index}+{index}", str(2 * index)) for index in range(200)]
    odd = [chat("say 7!", "yes"), chat("what?", "x" * 200), chat("and?", "y" * 200)]
    pairs = [pair(index) for index in range(200)]
    found = check(
        evaluation={},
        sft={"datasets": room.data("sft.jsonl", [*chats, *odd], **CHAT)},
        preference={"datasets": room.data("pairs.jsonl", [*pairs, pair(900, "no")], type=PAIRS)},
    )
    assert found.problems == []
    said = [warning.partition(": ")[2] for warning in found.warnings]
    few = "21 of its {} rows are held out for the test, too few to show any but large differences. Add rows, or set "
    for words in (
        "2 of 203 rows fill the context of 64 tokens, or are longer: they are not held out.",
        "1 of 201 rows have chosen = rejected: they are not held out.",
        "1 of 203 rows have a prompt that another row of a branch has, too: they are not held out.",
        "1 of 201 rows have a prompt that another row of a branch has, too: they are not held out.",
        few.format(203) + "evaluation.held_out.sft higher.",
    ):
        assert any(line.startswith(words.removesuffix(".")) for line in said), (words, said)


def test_more_than_half_of_the_rows_is_refused(room: Room, check: Preflight) -> None:
    datasets = room.data("sft.jsonl", [chat(f"add {index}+1", str(index)) for index in range(30)], **CHAT)
    (problem,) = check(evaluation={"held_out": {"sft": 200}}, sft={"datasets": datasets}).problems
    assert "evaluation.held_out.sft: 200 rows for the test" in problem
    assert "Ask for at most 12" in problem


def test_rows_that_are_all_alike_are_none(room: Room, check: Preflight) -> None:
    datasets = room.data("sft.jsonl", [chat("add 1+1", "2")] * 30, **CHAT)
    found = check(evaluation={"held_out": {"sft": 3}}, sft={"datasets": datasets})
    assert found.problems == []
    assert any("none of its 30 rows can be held out" in warning for warning in found.warnings)


def test_a_branch_that_is_trained_already_has_no_rows(tmp_path: Path, room: Room) -> None:
    from paft_plugin.pipeline.preflight.check import check_held_out

    (tmp_path / "done").mkdir()
    setup = room.setup(evaluation={})
    assert check_held_out(setup) == Findings()
    (warning,) = check_held_out(_with_trained(room, {})).warnings
    assert "preference is trained already, so no rows of its data can be held out" in warning
    assert check_held_out(_with_trained(room, {"held_out": {"preference": 0}})) == Findings()
    assert len(check_held_out(_with_trained(room, {"held_out": {"preference": 20}})).problems) == 1


def _with_trained(room: Room, evaluation: dict[str, Any]) -> Any:
    import yaml

    from paft_plugin.pipeline.arms import open_setup

    room.setup(evaluation=evaluation)
    file = room.folder / "paft.yml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"preference": "done"}))
    return open_setup(file)
