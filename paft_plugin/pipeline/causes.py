"""Well-known causes of a failed tool, told from the end of its log, and what to do about each."""

from __future__ import annotations

import re
from collections.abc import Sequence

_CAUSES: tuple[tuple[str, str], ...] = (
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
_CAUSES_COMPILED = tuple((re.compile(pattern, re.MULTILINE), hint) for pattern, hint in _CAUSES)


def hints(lines: Sequence[str]) -> list[str]:
    """What to do, for each well-known cause that these lines of a log name."""
    text = "\n".join(lines)
    return [hint for pattern, hint in _CAUSES_COMPILED if pattern.search(text)]
