"""What a training will take: memory of a device, room on the disk."""

from __future__ import annotations
