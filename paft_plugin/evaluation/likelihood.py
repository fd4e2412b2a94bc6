"""How likely a model finds given answers, how far it is from the base on them, and which answers it would give itself.

Rows go through the model longest first, a batch at a time and padded on the right. The output layer looks at answer tokens only,
and says in the same pass what the base would have said there, so that no two models are ever in memory: all that is kept of the
base is what went into its output layer, and that layer.

Shapes: B rows, T tokens, N answer tokens of a batch, D model dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from paft_plugin.errors import PaftError
from paft_plugin.evaluation.held_out_rows import Tokens

MOST_LOGITS = 1 << 28
"""Entries of (N, V) in one batch, beyond its first row: ½ GB in half precision."""
PIECE = 1 << 24
"""Entries of (N, V) that are in fp32 at once."""


@dataclass(frozen=True)
class Continuation:
    """An answer after its prompt."""

    key: str
    prompt: Tokens
    answer: Tokens


@dataclass(frozen=True)
class Likelihood:
    """What a model makes of one answer."""

    total: float
    """log p(answer | prompt), nats."""
    best: Tokens
    """The likeliest token at each place, after the right ones before it."""
    divergence: float | None
    """KL(base ‖ model) per token, nats, exact over the vocabulary that both have; None without the base."""
    hidden: Tensor
    """(N, D): what went into the output layer."""

    @property
    def per_token(self) -> float:
        """The mean log-likelihood of a token."""
        return self.total / len(self.best)


@dataclass(frozen=True)
class BaseOutput:
    """What is kept of the base, instead of all its logits: 30 times smaller, and the same to the last bit."""

    hidden: Mapping[str, Tensor]
    """Key of a continuation → (N, D)."""
    weight: Tensor
    """(V, D): its output layer."""
    bias: Tensor | None = None
    """(V,)"""

    def to(self, device: torch.device) -> BaseOutput:
        """With the output layer on a device; the rest goes there batch by batch."""
        return BaseOutput(self.hidden, self.weight.to(device), None if self.bias is None else self.bias.to(device))


class AnswerModel:
    """A causal language model, of which the weights may change, asked about `batch_size` rows at once.

    Raises:
        PaftError: It has no output layer of its own, as transformers' causal language models do.
    """

    def __init__(self, model: Any, batch_size: int) -> None:
        self._model, self._batch_size = model.eval(), batch_size
        self._head = model.get_output_embeddings()
        if self._head is None:
            raise PaftError(
                f"{type(model).__name__} has no output layer to be found, so held-out rows can't be scored."
            )

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self._model.parameters()).device

    @property
    def vocabulary(self) -> int:
        """How many tokens it knows."""
        return int(self._model.get_input_embeddings().weight.shape[0])

    @property
    def context(self) -> int | None:
        """How many tokens it can read, if its config says so."""
        return getattr(self._model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def output_layer(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of its output layer, on the CPU."""
        bias = getattr(self._head, "bias", None)
        return self._head.weight.detach().cpu(), None if bias is None else bias.detach().cpu()

    # --- answers that are given -----------------------------------------------------------------------------------------

    @torch.inference_mode()
    def likelihoods(self, rows: Sequence[Continuation], base: BaseOutput | None = None) -> dict[str, Likelihood]:
        """What the model makes of each answer, by its key; compared with the `base`, of which all are then known."""
        base = None if base is None else base.to(self.device)
        found: dict[str, Likelihood] = {}
        for batch in self._batches(rows):
            found |= {one.key: each for one, each in zip(batch, self._of_batch(batch, base), strict=True)}
        return found

    def _batches(self, rows: Sequence[Continuation]) -> Iterator[list[Continuation]]:
        """Of rows of about the same length, the longest first: what does not fit into memory is known at once."""
        batch: list[Continuation] = []
        for row in sorted(rows, key=lambda one: (-len(one.prompt) - len(one.answer), one.key)):
            logits = sum(len(one.answer) for one in (*batch, row)) * self.vocabulary
            if len(batch) == self._batch_size or (batch and logits > MOST_LOGITS):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _of_batch(self, batch: Sequence[Continuation], base: BaseOutput | None) -> Iterator[Likelihood]:
        ids, mask = _padded([(*one.prompt, *one.answer[:-1]) for one in batch], self.device)
        sizes = [len(one.answer) for one in batch]
        # A model says what it thinks of a token at the one before it.
        rows = torch.tensor([row for row, size in enumerate(sizes) for _ in range(size)])
        columns = torch.tensor([len(one.prompt) - 1 + place for one in batch for place in range(len(one.answer))])
        answers = torch.tensor([token for one in batch for token in one.answer], device=self.device)
        theirs = None if base is None else torch.cat([base.hidden[one.key] for one in batch])  # (N, D)
        with _only_at(self._head, rows.to(self.device), columns.to(self.device), base, theirs) as seen:
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits[
                0
            ]  # (N, V), with base (2 N, V)
        own, others = logits[: len(answers)], None if base is None else logits[len(answers) :, : len(base.weight)]
        totals, best, apart = _compare(own, answers, others)
        for total, said, kl, hidden in zip(
            *(each.split(sizes) for each in (totals, best, apart, seen[0])), strict=True
        ):
            divergence = None if base is None else float(kl.mean())
            yield Likelihood(float(total.sum()), tuple(said.tolist()), divergence, hidden)

    # --- answers of its own ---------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def greedy(
        self,
        prompts: Mapping[str, Tokens],
        most: int,
        ends: frozenset[int],
        settled: Callable[[str, Tokens], bool] = lambda _key, _said: False,
    ) -> dict[str, Tokens]:
        """Its own answer to each prompt, the likeliest token each time: to one of `ends`, or `most` tokens.

        An answer is left off as soon as it is `settled` what it comes to.
        """
        answers: dict[str, Tokens] = {}
        keys = sorted(prompts, key=lambda key: (-len(prompts[key]), key))
        for start in range(0, len(keys), self._batch_size):
            batch = keys[start : start + self._batch_size]
            longest = len(prompts[batch[0]])
            room = most if self.context is None else max(1, min(most, self.context - longest))
            ids, mask = _padded([prompts[key] for key in batch], self.device, left=True)
            until = StoppingCriteriaList([_Settled(batch, longest, settled)])
            with _plainly(self._model, room, ends):
                out = self._model.generate(input_ids=ids, attention_mask=mask, stopping_criteria=until)
            answers |= {key: up_to_end(said, ends) for key, said in zip(batch, out[:, longest:].tolist(), strict=True)}
        return answers


def up_to_end(tokens: Iterable[int], ends: frozenset[int]) -> Tokens:
    """Tokens up to the first end, with it."""
    found: list[int] = []
    for token in tokens:
        found.append(token)
        if token in ends:
            break
    return tuple(found)


class _Settled(StoppingCriteria):
    """Ends each answer of a batch that is settled."""

    def __init__(self, keys: Sequence[str], start: int, settled: Callable[[str, Tokens], bool]) -> None:
        self._keys, self._start, self._settled = keys, start, settled

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        said = input_ids[:, self._start :].tolist()
        settled = [self._settled(key, tuple(tokens)) for key, tokens in zip(self._keys, said, strict=True)]
        return torch.tensor(settled, device=input_ids.device)


@contextmanager
def _plainly(model: Any, most: int, ends: frozenset[int]) -> Iterator[None]:
    """Without what a checkpoint brings along for generation: a penalty for repeating itself would be no greedy answer."""
    own = model.generation_config
    filler = min(ends, default=0)
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=most, eos_token_id=sorted(ends) or None, pad_token_id=filler
    )
    try:
        yield
    finally:
        model.generation_config = own


def _padded(rows: Sequence[Sequence[int]], device: torch.device, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, (B, T) each; padding is token 0, which nothing attends to."""
    ids = [torch.tensor(tokens, dtype=torch.long) for tokens in rows]
    padded = partial(pad_sequence, batch_first=True, padding_side="left" if left else "right")
    return padded(ids).to(device), padded([torch.ones_like(tokens) for tokens in ids]).to(device)


@contextmanager
def _only_at(
    head: torch.nn.Module, rows: Tensor, columns: Tensor, base: BaseOutput | None, hidden: Tensor | None
) -> Iterator[list[Tensor]]:
    """For one pass: the output layer looks at these tokens alone, and then at what the base had there; yields what it saw.

    In its place and not after the model, so that whatever an architecture does to its logits is done to both.
    """
    seen: list[Tensor] = []

    def look(_head: torch.nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        seen.append(given[0][rows, columns])  # (N, D)
        return (seen[0][None],)

    def add_base(_head: torch.nn.Module, _given: object, logits: Tensor) -> Tensor:
        if base is None or hidden is None:
            return logits
        theirs = linear(hidden[None].to(base.weight), base.weight, base.bias)
        lacking = logits.shape[-1] - theirs.shape[-1]  # below 0: a vocabulary that lost its padding rows
        return torch.cat([logits, pad(theirs, (0, lacking)).to(logits.dtype)], dim=1)

    handles = [head.register_forward_pre_hook(look), head.register_forward_hook(add_base)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _compare(own: Tensor, answers: Tensor, base: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token of the answers (N,): its log-likelihood, the likeliest token there, and KL(base ‖ model)."""
    found = []
    step = max(1, PIECE // own.shape[-1])
    for start in range(0, len(answers), step):
        place = slice(start, start + step)
        log_p = own[place].float().log_softmax(-1)
        likely = log_p.gather(-1, answers[place, None])[:, 0].double()
        apart = torch.zeros_like(likely)
        if base is not None:
            log_q = base[place].float().log_softmax(-1)
            shared = log_q.shape[-1]
            log_p = log_p if shared == log_p.shape[-1] else log_p[:, :shared].log_softmax(-1)
            apart = (log_q.exp() * (log_q - log_p)).sum(-1).double().clamp_min(0)
        found.append((likely, own[place].argmax(-1), apart))
    likely, best, apart = (torch.cat(parts) for parts in zip(*found, strict=True))
    return likely, best, apart
