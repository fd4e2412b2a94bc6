"""How commands end, and how they keep other libraries quiet."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

BAD_INPUT = 2
INTERRUPTED = 130


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what other libraries say while they are imported (mergekit imports them all) from between our lines."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
