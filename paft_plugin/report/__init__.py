"""What people read in the end: tables and the run\x27s README."""

from __future__ import annotations
