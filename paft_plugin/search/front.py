"""Which of many scored settings nothing beats, and which of those is even-handed."""

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


def balanced(scores: Sequence[Scores], maximize: Sequence[bool]) -> int:
    """The place of the candidate on the front whose worst objective is best, each scaled to 0–1 between its worst and best.

    An objective that all candidates reach alike does not count. Among equals the greater sum decides, then the first.
    """
    columns = [
        [value if up else -value for value in column]
        for column, up in zip(zip(*scores, strict=True), maximize, strict=True)
    ]
    spans = [(min(column), max(column)) for column in columns]

    def scaled(place: int) -> list[float]:
        return [
            (column[place] - low) / (high - low)
            for column, (low, high) in zip(columns, spans, strict=True)
            if high > low
        ] or [1.0]

    return max(pareto_front(scores, maximize), key=lambda place: (min(scaled(place)), sum(scaled(place)), -place))


def _covers(one: Scores, other: Scores) -> bool:
    return all(first >= second for first, second in zip(one, other, strict=True))
