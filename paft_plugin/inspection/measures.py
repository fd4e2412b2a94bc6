"""What is measured of a delta and of a pair of deltas, for one tensor or a group of them.

Counts are of entries. Everything that is a share, a ratio or a norm's square follows from sums, so a group's figures are those of
its tensors laid end to end; what does not add up (ranks, subspaces) is there for single tensors only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import computed_field
from pydantic.dataclasses import dataclass

from paft_plugin.formats import threshold_key


@dataclass(frozen=True)
class Rank:
    """Effective rank of one matrix (`deltas/measures.py` defines it): between 1 and its rank."""

    value: float
    standard_error: float
    """0 where the value is exact (adapters, from their factors); otherwise that of the estimate from sampled rows."""


@dataclass(frozen=True)
class Measures:
    """What is measured of one delta, over one tensor or a group of tensors."""

    entries: int
    zeros: int
    """δ is exactly 0."""
    small: Mapping[str, int]
    """Threshold, as `threshold_key` writes it → entries with |δ| ≤ threshold, both in fp32."""
    unseen: Mapping[str, int]
    """Dtype (`bfloat16`) → entries that rounding to it hides: round(θ_pre + δ) = round(θ_pre), as in arXiv 2505.11711. It holds
    the base's own dtype, and bfloat16."""
    l1: float
    l2: float
    largest: float
    """max |δ|."""
    base_l2: float
    """‖θ_pre‖₂ over the same entries."""
    hoyer: float | None
    """(√n − ‖δ‖₁/‖δ‖₂) / (√n − 1): 0 if all |δ| are equal, 1 if one entry is all; None for a delta of zeros or one entry."""
    gini: float | None
    """Gini coefficient of |δ|: 0 if all are equal, 1 − 1/n if one entry is all; None for a delta of zeros."""
    top_1_percent: float | None
    """Share of ‖δ‖₁ in the 1 % of entries of greatest magnitude; None for a delta of zeros."""
    top_10_percent: float | None
    effective_rank: Rank | None = None
    """Of a single matrix; None for groups, vectors and zeros."""

    def sparsity(self, threshold: float) -> float:
        """Share of entries with |δ| ≤ threshold, one of those that were inspected."""
        return self.small[threshold_key(threshold)] / self.entries

    @property
    def zero_share(self) -> float:
        """Share of entries with δ = 0."""
        return self.zeros / self.entries

    @computed_field(alias="sparsity")  # type: ignore[prop-decorator]
    @property
    def sparsities(self) -> dict[str, float]:
        """Threshold, as `threshold_key` writes it → share of entries with |δ| ≤ threshold."""
        return {key: count / self.entries for key, count in self.small.items()}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def unseen_share(self) -> dict[str, float]:
        """`unseen` as shares of the entries."""
        return {key: count / self.entries for key, count in self.unseen.items()}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def relative(self) -> float | None:
        """‖δ‖₂ / ‖θ_pre‖₂."""
        return self.l2 / self.base_l2 if self.base_l2 else None


@dataclass(frozen=True)
class Overlap:
    """Supports of two deltas at one threshold: where |δ| is above it."""

    first: int
    second: int
    both: int
    conflicts: int
    """Of `both`: entries of opposite signs."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def jaccard(self) -> float | None:
        """|A ∩ B| / |A ∪ B|; None if both supports are empty."""
        union = self.first + self.second - self.both
        return self.both / union if union else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def conflict_share(self) -> float | None:
        """Share of the entries in both supports whose signs are opposite; None if there are none."""
        return self.conflicts / self.both if self.both else None


@dataclass(frozen=True)
class Election:
    """What trimming and the election of signs do to two branches of equal weight, at one density; in entries.

    TIES counts may be fractions: of equal magnitudes at the edge of the trim each is kept with the same chance. DARE counts are
    expected values.
    """

    nonzero: tuple[int, int]
    """Entries ≠ 0 of (first, second), before trimming."""
    kept: tuple[float, float]
    """Entries ≠ 0 that survive trimming."""
    both: float
    """Kept in both."""
    conflicts: float
    """Of `both`: of opposite signs; the greater magnitude wins, a tie goes to the positive sign."""
    lost: tuple[float, float]
    """Kept, but overruled by the election of signs."""
    mass: tuple[float, float] | None = None
    """Σ|δ| of each branch's entries that take part in the merged delta, in the units of `Measures.l1`; before DARE rescales."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def trimmed(self) -> tuple[float, float]:
        """Entries ≠ 0 that trimming removes."""
        return self.nonzero[0] - self.kept[0], self.nonzero[1] - self.kept[1]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def elected(self) -> tuple[float, float]:
        """Entries of each branch that take part in the merged delta."""
        return self.kept[0] - self.lost[0], self.kept[1] - self.lost[1]


@dataclass(frozen=True)
class Vote:
    """What becomes of one branch's entries when all branches, of equal weight, elect signs at one density; in entries.

    Of equal magnitudes at the edge of a trim as many are kept as there is room for, up to chance.
    """

    nonzero: int
    """Entries ≠ 0, before trimming."""
    won: int
    """Kept, and of the elected sign: they take part in the merged delta."""
    lost_to_one: int
    """Kept, but overruled where one entry of another branch is, by itself, enough to overrule all of this sign."""
    lost_to_several: int
    """Kept, but overruled where only several together are: a coalition."""
    mass: float
    """Σ|δ| of those that won."""

    @property
    def trimmed(self) -> int:
        """Entries ≠ 0 that trimming removes."""
        return self.nonzero - self.won - self.lost_to_one - self.lost_to_several


@dataclass(frozen=True)
class Elections:
    """What TIES makes of three deltas or more at once, over one tensor or a group of them; of equal weights."""

    entries: int
    """Of the tensors that any of them changes."""
    ties: Mapping[str, Mapping[str, Vote]]
    """Density → delta → its vote; each tensor is trimmed by itself."""


@dataclass(frozen=True)
class Subspaces:
    """How far the subspaces of two adapters coincide: the mean cos² of their principal angles.

    0: orthogonal; 1: one holds the other.
    """

    columns: float
    """Of the column spaces (what the changes write to), from the B factors."""
    rows: float
    """Of the row spaces (what they read), from the A factors."""
    columns_by_chance: float
    """What two random subspaces of these ranks would have: the greater rank / dimension."""
    rows_by_chance: float


@dataclass(frozen=True)
class Interference:
    """What is measured of two deltas together, over one tensor that both change or a group of them."""

    entries: int
    overlap: Mapping[str, Overlap]
    """Threshold → supports. It always holds `0.0`: where δ ≠ 0."""
    agreeing: float
    """Σ|δ₁δ₂| over entries of the same sign."""
    opposing: float
    """Σ|δ₁δ₂| over entries of opposite signs."""
    squares: tuple[float, float]
    """‖δ₁‖₂², ‖δ₂‖₂²."""
    ties: Mapping[str, Election]
    """Density → TIES with equal weights, each tensor trimmed by itself, as mergekit does."""
    dare: Mapping[str, Election]
    """Density → expected outcome of DARE-TIES."""
    subspaces: Subspaces | None = None
    """Of one tensor that two adapters change by factors."""
    l1: tuple[float, float] | None = None
    """‖δ₁‖₁, ‖δ₂‖₁."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def cosine(self) -> float | None:
        """⟨δ₁, δ₂⟩ / (‖δ₁‖₂ ‖δ₂‖₂); None if one is zero."""
        norms = math.sqrt(self.squares[0]) * math.sqrt(self.squares[1])
        return (self.agreeing - self.opposing) / norms if norms else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def conflict_weight(self) -> float | None:
        """Sign conflicts weighted by magnitude: Σ|δ₁δ₂| of opposite signs / Σ|δ₁δ₂|. Neither branch's scale sways it."""
        total = self.agreeing + self.opposing
        return self.opposing / total if total else None
