"""What the runner can read in the logs of our stages: how far a training is, and well-known causes of a failure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from paft_plugin.inspection.training_log import Follower, Training
from paft_plugin.runner.logs import LogReader, StageProgress

_CAUSES = (
    (
        r"CUDA out of memory|torch\.(cuda\.)?OutOfMemoryError|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
        "The GPU ran out of memory: in the axolotl config lower micro_batch_size (and raise gradient_accumulation_steps "
        "as much), lower sequence_len, or set gradient_checkpointing: true. If two stages were on one GPU, set "
        "share_device: never in paft.yml.",
    ),
    (
        r"^MemoryError\b|Cannot allocate memory|can't allocate memory|DefaultCPUAllocator: not enough memory",
        "The machine ran out of main memory: run fewer stages at once (workers), or lower micro_batch_size or "
        "sequence_len.",
    ),
    (
        r"GatedRepoError|gated repo|gated dataset|(401|403) Client Error|Access to \w+ \S+ is restricted|Invalid user token",
        "The Hugging Face hub refused access: accept the terms on the model's or data set's page, then log in with "
        "`hf auth login`.",
    ),
    (
        r"offline mode is enabled|OfflineModeIsEnabled|LocalEntryNotFoundError|couldn't find (it|them) in the cached files",
        "The hub was needed, and it is switched off or out of reach (HF_HUB_OFFLINE, the network): download the model or "
        "data first with `hf download`, or name a local folder.",
    ),
    (
        r"KeyError: ['\"](messages|conversations|chosen|rejected|prompt|question|instruction|output|input|text|label|"
        r"completion|role|content)['\"]|Messages is null|Column name .* not in|Column .* doesn't exist",
        "A column of the data set is missing, or named otherwise than the `type` in `datasets:` expects: compare the rows "
        "with the type, or name the fields (field_messages, field_chosen, message_property_mappings …).",
    ),
)


def hints(lines: Sequence[str]) -> list[str]:
    """What to do, for each well-known cause that these lines of a log name."""
    text = "\n".join(lines)
    return [hint for pattern, hint in _CAUSES if re.search(pattern, text, re.MULTILINE)]


def follow(log: Path) -> Callable[[], StageProgress]:
    """How far the training is that writes `log`, asked again and again; nothing for a stage that trains nothing."""
    follower = Follower(log)
    return lambda: progress(follower.update())


STAGE_LOGS = LogReader(follow, hints)


def progress(training: Training) -> StageProgress:
    """What the runner shows, in at most 78 columns with the time left, and notes of a training; nothing before its first step."""
    if not training.total:
        return StageProgress()
    words = [f"step {training.step}/{training.total}"]
    figures: dict[str, int | float | None] = {"step": training.step, "total": training.total}
    if training.remaining is not None:
        figures["remaining"] = training.remaining
    if training.loss is not None:
        words.append(f"loss {training.loss:.4g}")
        figures["loss"] = training.loss if math.isfinite(training.loss) else None
    if training.strength is not None:
        words.append(f"λ {training.strength:.2g}")
        figures["lambda"] = training.strength
    if training.sparsity is not None:
        threshold, share = training.sparsity
        words.append(f"sparsity@{threshold} {share:.1%}")
        figures[f"sparsity@{threshold}"] = share
    return StageProgress(" · ".join(words), figures)
