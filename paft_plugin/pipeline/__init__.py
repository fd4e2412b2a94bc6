"""What PAFT runs: from a `paft.yml` to trained branches, fused models, scores and a report."""

from __future__ import annotations
