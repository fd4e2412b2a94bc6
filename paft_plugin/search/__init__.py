"""Search of merge settings: which method, density, weights and scale score best on validation items.

This room sits on fusion, which merges, and on evaluation, which scores; neither knows of it. `run.run_search` is the whole;
`axolotl paft search` calls it. Optuna comes with the extra `paft-plugin[search]` and is imported late.
"""

from __future__ import annotations
