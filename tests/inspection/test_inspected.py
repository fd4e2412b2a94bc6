"""An inspection's file says the same when it is read again, and a wrong one is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paft_plugin.deltas.measures import Histogram
from paft_plugin.errors import PaftError
from paft_plugin.inspection.inspected import (
    Figures,
    InspectedDelta,
    InspectedPair,
    Inspection,
    TensorFigures,
    read_inspection,
    write_inspection,
)
from paft_plugin.inspection.measures import Election, Interference, Measures, Overlap, Rank, Subspaces

MEASURES = Measures(
    entries=8,
    zeros=2,
    small={"1e-05": 4},
    unseen={"float32": 2, "bfloat16": 6},
    l1=3.0,
    l2=2.0,
    largest=1.5,
    base_l2=4.0,
    hoyer=0.25,
    gini=0.5,
    top_1_percent=0.1,
    top_10_percent=0.3,
    effective_rank=Rank(1.5, 0.1),
)
ELECTION = Election(nonzero=(6, 5), kept=(4.0, 3.5), both=2.5, conflicts=1.5, lost=(1.0, 0.5))
INTERFERENCE = Interference(
    entries=8,
    overlap={"0.0": Overlap(6, 5, 4, 1), "1e-05": Overlap(3, 2, 1, 0)},
    agreeing=3.0,
    opposing=1.0,
    squares=(4.0, 1.0),
    ties={"1.0": ELECTION},
    dare={"1.0": ELECTION},
    subspaces=Subspaces(0.5, 0.25, 0.1, 0.2),
)


def inspection() -> Inspection:
    def figures(of: Measures | Interference) -> Figures:
        tensors = (
            TensorFigures("model.embed_tokens.weight", None, "embed_tokens", (2, 4), of),
            TensorFigures("model.layers.3.mlp.up_proj.weight", 3, "mlp.up_proj", (2, 4), of),
        )
        return Figures(of, {3: of}, {"mlp.up_proj": of, "embed_tokens": of}, {(3, "mlp.up_proj"): of}, tensors)

    deltas = tuple(
        InspectedDelta(name, kind, f"/runs/{name}", Histogram((-1.0, 0.0, 1.0), (5, 3), 2, 1), figures(MEASURES))
        for name, kind in (("sft", "adapter"), ("dpo", "model"))
    )
    return Inspection(
        base="/base",
        thresholds=(1e-5,),
        densities=(1.0,),
        deltas=deltas,
        pairs=(InspectedPair("sft", "dpo", figures(INTERFERENCE)),),
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_inspection(inspection(), tmp_path)
    assert read_inspection(tmp_path) == inspection()


def test_shares_follow_from_the_counts() -> None:
    assert MEASURES.sparsity(1e-5) == 0.5
    assert MEASURES.relative == 0.5
    assert INTERFERENCE.cosine == pytest.approx(1.0)
    assert INTERFERENCE.conflict_weight == 0.25
    assert INTERFERENCE.overlap["0.0"].jaccard == pytest.approx(4 / 7)
    assert INTERFERENCE.overlap["0.0"].conflict_share == 0.25
    assert ELECTION.trimmed == (2.0, 1.5)
    assert ELECTION.elected == (3.0, 3.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: {**content, "schema": 99}, "schema 99, and this version reads 1"),
        (lambda content: {key: value for key, value in content.items() if key != "deltas"}, "damaged"),
        (lambda content: {**content, "pairs": [1]}, "damaged"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, change, said: str) -> None:
    file = write_inspection(inspection(), tmp_path)
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(PaftError, match=said):
        read_inspection(tmp_path)


def test_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PaftError, match="missing"):
        read_inspection(tmp_path)
