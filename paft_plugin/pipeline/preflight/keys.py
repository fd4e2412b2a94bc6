"""Keys of an axolotl config that axolotl would drop without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from paft_plugin.errors import Findings, closest
from paft_plugin.pipeline.preflight.data_files import file_type
from paft_plugin.schema import dotted, names_of, unknown_keys

CLOSE = 0.8
"""How alike a key and one that exists must be, 0 to 1, for the key to be a slip of the pen."""


def lost_keys(schema: type[BaseModel], content: Mapping[str, Any], where: str, said: Sequence[str]) -> Findings:
    """Keys that `schema` does not know, at any depth.

    One that is close to a known key is a mistake; another one may be meant for somebody else, such as a YAML anchor.

    Args:
        schema: axolotl's, with the plugins' keys.
        content: The config as the user wrote it.
        where: For messages.
        said: Problems that are known already: a plugin may have refused its own misspelt keys, and knows better what was meant.
    """
    findings = Findings()
    for keys, models in unknown_keys([schema], content):
        start = f"{where}: {dotted(keys)}: "
        if any(problem.startswith(start) for problem in said):
            continue
        if close := closest(str(keys[-1]), names_of(models), CLOSE):
            findings.add([f"{start}axolotl has no such key and would drop it. Did you mean {close}?"])
        else:
            findings.add(
                warnings=[f"{start}axolotl has no such key and drops it. Remove it if it was to do something."]
            )
    return findings


def dropped_keys(datasets: Sequence[Mapping[str, Any]], known: type[BaseModel], strategy: str, where: str) -> list[str]:
    """Keys of data sets that axolotl knows elsewhere, but drops under `rl: strategy`.

    Args:
        datasets: As the user wrote them.
        known: What axolotl turns each into under this strategy.
        strategy: axolotl's `rl`.
        where: For messages.
    """
    problems = []
    for index, entry in enumerate(datasets):
        lost = [key for key, value in entry.items() if key not in known.model_fields and value not in (None, False)]
        guessed = file_type({}, str(entry.get("path") or ""))
        lost = [key for key in lost if not (key == "ds_type" and entry[key] == guessed)]
        problems += [
            f"{where}: datasets[{index}].{key}: axolotl drops this key under rl: {strategy}, whose data sets know "
            f"{', '.join(known.model_fields)} and no more. Remove it, and bring the data into the shape that its type reads."
            for key in lost
        ]
    return problems
