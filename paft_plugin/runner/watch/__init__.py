"""What is told of a run while it goes on and after: events, a live display, its status."""

from __future__ import annotations
