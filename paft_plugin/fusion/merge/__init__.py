"""Merging a recipe with mergekit's own planner, executor and methods, without a second copy of any model.

- `open_fusion(recipe, seed, device)` → `Fusion`; its `tensors()` yields (name, fused tensor) and writes nothing.
- `write_fusion(fusion, out, …)` writes the merged model, the whole of it or nothing.
- `fuse_tensors(method, parameters, base, branches)` fuses one set of tensors in memory.
"""

from __future__ import annotations

from paft_plugin.fusion.merge.fast import fuse_tensors
from paft_plugin.fusion.merge.fusion import Fusion, open_fusion
from paft_plugin.fusion.merge.write import write_fusion

__all__ = ["Fusion", "fuse_tensors", "open_fusion", "write_fusion"]
