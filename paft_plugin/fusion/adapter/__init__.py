"""A recipe's fused delta as a PEFT adapter: exact where the merge is linear in adapters' deltas, else the best of a rank.

- `write_adapter(fusion, out, rank, max_error, …)` writes the folder, the whole of it or nothing.
- `error_table(errors)` shows what the adapter misses.
"""

from __future__ import annotations

from paft_plugin.fusion.adapter.errors import ModuleError, error_table, total_error
from paft_plugin.fusion.adapter.write import MAX_ERROR, FusedAdapter, write_adapter

__all__ = ["MAX_ERROR", "FusedAdapter", "ModuleError", "error_table", "total_error", "write_adapter"]
