"""Ray's private names (2.60) that we need, each with its reason: the first place to look when a new Ray breaks something."""

from __future__ import annotations


def bootstrap_address(address: str) -> str:
    """`HOST:PORT` of the cluster that `auto`, or HOST:PORT itself, names.

    `ray.init` does this too, but then tries for minutes to reach it; we want to know first whether anything listens there.

    Raises `ConnectionError` where `auto` finds no cluster, `OSError` or `ValueError` for what is no address.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die

    return str(canonicalize_bootstrap_address_or_die(address))


def be_silent_about_workers() -> None:
    """Ray tells of a worker that died on standard output, into the display, even with `log_to_driver=False`."""
    from ray._private import worker

    worker._worker_logs_enabled = False
