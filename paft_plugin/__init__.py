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
AXOLOTL = ">=0.19,<0.22"
"""The versions of axolotl that it works with."""


def __getattr__(name: str) -> Any:
    if name == "PAFTPlugin":
        return _plugin()
    if name == "PAFTArgs":
        from paft_plugin.args import PAFTArgs

        return PAFTArgs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _plugin() -> type[PAFTPlugin]:
    """The plugin, or an error that stops the run: axolotl 0.19 logs an `ImportError`, and trains without the penalty."""
    from importlib.metadata import version

    from paft_plugin.errors import PaftError

    try:
        from packaging.specifiers import SpecifierSet

        installed = version("axolotl")
        if not SpecifierSet(AXOLOTL).contains(installed, prereleases=True):
            raise PaftError(
                f"paft-plugin {__version__} works with axolotl{AXOLOTL}, and this is axolotl {installed}: install one of "
                "those, or the paft-plugin that goes with it"
            )
        from paft_plugin.plugin import PAFTPlugin
    except ImportError as error:
        raise PaftError(f"paft_plugin.PAFTPlugin cannot be imported with what is installed here: {error}") from error
    return PAFTPlugin
