"""Merging a recipe with mergekit's own planner, executor and methods, without a second copy of any model.

- `open_fusion(recipe, seed, device)` → `Fusion`; its `tensors()` yields (name, fused tensor) and writes nothing.
- `write_fusion(fusion, out, …)` writes the merged model, the whole of it or nothing.
- `reuse_freed_memory()`: for a process that does nothing but merge.
- `fuse_tensors(method, parameters, base, branches)` fuses one set of tensors in memory.
"""

from __future__ import annotations

from paft_plugin.fusion.merge.fusion import Fusion, open_fusion
from paft_plugin.fusion.merge.selection import fuse_tensors
from paft_plugin.fusion.merge.write import write_fusion
from paft_plugin.machine import reuse_freed_memory

__all__ = ["Fusion", "fuse_tensors", "open_fusion", "reuse_freed_memory", "write_fusion"]
