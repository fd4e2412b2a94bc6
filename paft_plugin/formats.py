"""How numbers are written: the same in a terminal, in Markdown, on a page and in a plot's caption."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

BLANK = "–"
"""Where there is no number."""
MINUS = "−"


def threshold_key(threshold: float) -> str:
    """A sparsity threshold as a JSON key: the shortest text that reads back as the same number (`1e-05`, `2.5e-05`, `0.001`)."""
    return repr(float(threshold))


def plain_number(value: float) -> str:
    """A sparsity threshold, also in a metric's name, or a tick of an axis: `1e-5`, `0.001`, `100`."""
    return f"{value:g}".replace("e-0", "e-").replace("e+0", "e")


def number(value: float | None) -> str:
    """A score: three decimals, or four digits from 10 on; never a negative zero."""
    if value is None or not math.isfinite(value):
        return BLANK
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def signed(value: float | None) -> str:
    """`number` with its sign."""
    text = number(value)
    return text if text.startswith((MINUS, BLANK)) else f"+{text}"


def limits(ends: Iterable[float]) -> str:
    """The ends of an interval."""
    return f"[{', '.join(map(signed, ends))}]"


def reach(value: float, ends: Iterable[float]) -> float:
    """From a value to the farther end of its interval: what stands after ±."""
    return max(abs(end - value) for end in ends)


def p_value(p: float) -> str:
    """Three decimals, and no smaller ones."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_said(p: float) -> str:
    """`p_value` in a sentence."""
    return f"p {'' if p < 0.001 else '= '}{p_value(p)}"


def share(value: float | None, decimals: int = 1) -> str:
    """A share of 1 as per cent. Only none at all is 0, and only the whole is 100."""
    if value is None or not math.isfinite(value):
        return BLANK
    least = 10.0**-decimals
    text = f"{100 * value:.{decimals}f}"
    if value > 0 and float(text) == 0:
        return f"<{least:.{decimals}f}%"
    if value < 1 and float(text) == 100:
        return f">{100 - least:.{decimals}f}%"
    return f"{text}%"


def measured(value: float | None, digits: int = 3) -> str:
    """A norm, a time or anything else that may be of any size, in so many significant digits."""
    return BLANK if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


PASSWORD_IN_URL = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]+(?=@)")


def without_password(url: str) -> str:
    """A URL to be shown or written where others read it."""
    return PASSWORD_IN_URL.sub("***", url)
