"""PAFT for axolotl and mergekit: sparse SFT and preference training in parallel, then fusion (arXiv 2406.17923).

axolotl finds `paft_plugin.PAFTPlugin` and `paft_plugin.PAFTArgs` here. Both load on first use, so that the command line
(`axolotl paft …`) costs no torch import of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paft_plugin.args import PAFTArgs as PAFTArgs
    from paft_plugin.plugin import PAFTPlugin as PAFTPlugin

__all__ = ["PAFTArgs", "PAFTPlugin", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "PAFTPlugin":
        from paft_plugin.plugin import PAFTPlugin

        return PAFTPlugin
    if name == "PAFTArgs":
        from paft_plugin.args import PAFTArgs

        return PAFTArgs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
