"""The L1 penalty on live deltas: finding them, norm and subgradient in one chunked pass, adding it to a training step."""

from __future__ import annotations
