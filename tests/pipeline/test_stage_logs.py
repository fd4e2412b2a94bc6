"""What the runner is told of our stages' logs, by what the tools really print; lines that every log holds name no cause."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from paft_plugin.inspection.training_log import Training
from paft_plugin.pipeline.stage_logs import STAGE_LOGS, hints, progress
from paft_plugin.runner.logs import StageProgress
from paft_plugin.runner.watch.display import in_words
from tests.inspection.training_lines import DPO, FIRST, LAST, SCORE, START, TRAIN, read_training

HARMLESS = """\
[WARNING] [bitsandbytes.backends.cpu.ops] Failed to load CPU gemm_4bit_forward from kernels-community: Version 1 of \
'kernels-community/quantization-bitsandbytes' is not available in the local cache and Hugging Face Hub is in offline mode.
[WARNING] [py.warnings] UserWarning: 'pin_memory' argument is set as true but no accelerator is found
{'loss': '0.4013', 'epoch': '0.403'}
rc 403, 401 rows
KeyError: 'model.layers.0'
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        # torch 2.13, c10/cuda/CUDACachingAllocator.cpp
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total …",
            "share_device: never",
        ),
        # torch 2.13 on a CPU, of torch.empty(10**15)
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
            "to allocate 4000000000000000 bytes. Error code 12 (Cannot allocate memory)",
            "main memory",
        ),
        # huggingface_hub 1.x, utils/_http.py
        ("403 Client Error.\n\nCannot access gated repo for url https://huggingface.co/x/y.", "hf auth login"),
        ("Access to model meta-llama/Llama-3.2-3B is restricted. You must have access to it", "hf auth login"),
        # axolotl 0.19, with HF_HUB_OFFLINE=1 and a base model that is not in the cache
        (
            "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached "
            "files.",
            "hf download",
        ),
        # axolotl 0.19, DPO rows without `rejected`, SFT rows without `messages`
        ("KeyError: 'rejected'", "A column of the data set is missing"),
        ("ValueError: Messages is null. Please check `field_messages`.", "A column of the data set is missing"),
    ],
)
def test_each_cause_is_named_once_among_harmless_lines(line: str, said: str) -> None:
    found = hints([*HARMLESS.splitlines(), *line.splitlines()])
    assert len(found) == 1
    assert said in found[0]


def test_harmless_lines_name_no_cause() -> None:
    assert hints(HARMLESS.splitlines()) == []


def test_a_training_in_words_and_for_machines() -> None:
    sparse = progress(read_training(TRAIN + START + FIRST + LAST))
    assert sparse.words == "step 120/120 · loss 0.1736 · λ 0.0001 · sparsity@1e-5 88.5%"
    assert json.dumps(sparse.figures) == (
        '{"step": 120, "total": 120, "remaining": 0.0, "loss": 0.1736, "lambda": 0.0001, "sparsity@1e-5": 0.8852}'
    )
    assert progress(read_training(TRAIN + DPO)) == StageProgress(
        "step 21/80 · loss 0.6931", {"step": 21, "total": 80, "remaining": 34.0, "loss": 0.6931}
    )
    broken = Training(begun=True, step=1, total=2, metrics={"loss": math.nan})
    assert progress(broken) == StageProgress("step 1/2 · loss nan", {"step": 1, "total": 2, "loss": None})


def test_what_is_no_training_says_nothing() -> None:
    assert progress(read_training(SCORE)) == progress(read_training(TRAIN)) == StageProgress()


def test_a_training_is_followed_and_its_words_fit_beside_the_time_left(tmp_path: Path) -> None:
    log = tmp_path / "sft-l1.log"
    now = STAGE_LOGS.follow(log)
    assert now() == StageProgress()
    log.write_text(TRAIN + START)
    assert now().figures["step"] == 1
    log.write_text(TRAIN + START + FIRST)
    assert in_words(now()) == "step 10/120 · loss 0.3016 · λ 0.0001 · sparsity@1e-5 65.6% · 14.0 s left"
