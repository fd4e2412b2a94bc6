"""The commands of `axolotl paft`, one a file: arguments and printing only; whatever is heavy is imported inside them."""

from __future__ import annotations
