"""What `axolotl paft search` needs of a `paft.yml`: its branches, trained, and its `search:`."""

from __future__ import annotations

from pathlib import Path

from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.pipeline.config import read_config
from paft_plugin.pipeline.setup import SPARSE, locate
from paft_plugin.search.config import SearchRequest


def search_request(file: Path) -> SearchRequest:
    """The search that a `paft.yml` asks for.

    Raises:
        PaftError: All that is wrong with the file; no `search:` in it; branches that are not trained yet.
    """
    config = read_config(file)
    if config.search is None:
        raise PaftError(f"{file}: search: missing. It says what to search, and on which tasks: see the README.")
    setup = locate(config, file)
    folders = {name: setup.branch_folder(name) for name in (SPARSE, setup.preference)}
    raise_if_any(
        [
            f"{file}: the branch {name} is not trained yet (there is no {folder}). Run `axolotl paft run {file}` first."
            for name, folder in folders.items()
            if not folder.is_dir()
        ]
    )
    sft, preference = folders.values()
    return SearchRequest(setup.base, sft, preference, config.output_dir, config.search)
