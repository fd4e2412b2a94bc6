"""Settings that every test wants: one thread (small models are slower with two), no telemetry, no network."""

from __future__ import annotations

import os

# Before torch is imported anywhere, and inherited by every subprocess.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
