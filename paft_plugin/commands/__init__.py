"""The commands of `axolotl paft`, one a file: arguments and printing only, whatever is heavy is imported inside."""

from __future__ import annotations
