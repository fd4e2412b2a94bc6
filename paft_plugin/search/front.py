"""Which of many scored settings nothing beats, and which of those gives up least."""

from __future__ import annotations

from collections.abc import Sequence

Scores = Sequence[float]


def pareto_front(scores: Sequence[Scores], maximize: Sequence[bool]) -> list[int]:
    """The places of those that none dominates: no other is at least as good at everything and better at something.

    Of several with the same scores the first counts, so a method's default before settings that do no better.

    Args:
        scores: One row for each candidate, one finite number for each objective.
        maximize: For each objective whether more is better.

    Returns:
        Places in `scores`, in order; for one objective the best alone.
    """
    gains = [tuple(value if up else -value for value, up in zip(row, maximize, strict=True)) for row in scores]
    front: list[int] = []
    for place, own in enumerate(gains):
        beaten = any(_covers(other, own) and other != own for other in gains)
        if not beaten and own not in (gains[earlier] for earlier in front):
            front.append(place)
    return front


def even_handed(scores: Sequence[Scores], maximize: Sequence[bool]) -> int:
    """The place of the candidate on the front that gives up least: whose greatest loss against the best of any objective,
    as a share of that best, is smallest. Among equals the smaller sum of losses decides, then the first.

    Args, and the order of places, as in `pareto_front`.
    """
    best = [(max if up else min)(column) for column, up in zip(zip(*scores, strict=True), maximize, strict=True)]

    def losses(place: int) -> list[float]:
        return [abs(value - top) / (abs(top) or 1.0) for value, top in zip(scores[place], best, strict=True)]

    return min(pareto_front(scores, maximize), key=lambda place: (max(losses(place)), sum(losses(place)), place))


def _covers(one: Scores, other: Scores) -> bool:
    return all(first >= second for first, second in zip(one, other, strict=True))
