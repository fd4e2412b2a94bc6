"""The L1 penalty on live deltas: finding them, norm and subgradient in one pass, adding it to a training step.

Knows torch, PEFT and the transformers Trainer; nothing of axolotl.
"""

from __future__ import annotations
