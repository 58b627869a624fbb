"""Which tokens the next step computes. Plain Python without a clock: the same calls give the same plans.

A step takes, within `max_batched_tokens`: one token of every sequence that decodes, then chunks of the prompts that are
being computed, then new sequences from the queue (Sarathi-Serve's chunked prefill mixed with decode). Each part is
served in the policy's order, and the queue is never overtaken: what cannot be admitted holds back what is behind it.

The loop calls `schedule` before it has read the results of the step in flight, and `commit` when they arrive. Every
plan that `schedule` returns must run, in order. That is what makes early release and early sharing safe: pages that a
finished sequence gave back may still be written by the step in flight, but whoever gets them next writes after it; and
a prompt's pages can be shared from the step after the one that fills them.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from typing import NamedTuple

from slipstream.api.outputs import FinishReason
from slipstream.engine.config import EngineConfig
from slipstream.engine.pages import PagePool
from slipstream.engine.policy import POLICIES, victim
from slipstream.engine.prefix import PrefixCache, PrefixMatch
from slipstream.engine.request import RowPlan, Sequence, Status, StepPlan
from slipstream.engine.shapes import ShapePolicy
from slipstream.errors import ConfigError, PromptTooLong, RequestError

MAX_IN_FLIGHT = 2  # the step on the device and the one planned behind it


class Committed(NamedTuple):
    """A row's accepted result. `token` is None for a chunk of a prompt that is not at its end.

    `finish_reason` is set if the token ended the sequence, which has then left the scheduler; `stop_reason` is the stop
    token that did.
    """

    sequence: Sequence
    token: int | None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None


@dataclass
class _Draft:
    """A plan in the making.

    `budget`: tokens that still fit. `blocks`: digests of the prompt blocks that it computes. `short`: it ran out of
    pages. `promised`: pages that the known tokens of running sequences still need.
    """

    budget: int
    rows: dict[Sequence, RowPlan] = field(default_factory=dict)
    blocks: set[bytes] = field(default_factory=set)
    short: bool = False
    promised: int = 0

    def add(self, row: RowPlan) -> None:
        self.rows[row.sequence] = row
        self.budget -= row.count

    def drop(self, sequence: Sequence) -> None:
        row = self.rows.pop(sequence, None)
        if row is not None:
            self.budget += row.count


class Scheduler:
    """Owns the waiting and running sequences, their slots and pages.

    `preemptions`, `prefix_queries` and `prefix_hits` (both in tokens, of each request's first admission, as vLLM
    counts) grow from 0.
    """

    def __init__(
        self,
        config: EngineConfig,
        pages: PagePool,
        shapes: ShapePolicy,
        max_model_len: int,
        *,
        whole_prompts: bool = False,
    ) -> None:
        """An idle scheduler. `whole_prompts`: no prompt is computed in chunks; each must fit a step, alone at least.

        Raises ConfigError if a sequence of `max_model_len` tokens could never run to its end.
        """
        page_size = config.page_size
        assert page_size is not None, "whoever builds an engine decides that"
        needed = -(-max_model_len // page_size)
        for name, limit in {"the KV cache has": pages.num_pages, "a page table has": shapes.max_pages_per_seq}.items():
            if needed > limit:
                raise ConfigError(
                    f"max_model_len {max_model_len} needs {needed} pages of {page_size} tokens, {name} {limit}: "
                    f"lower max_model_len to {limit * page_size}"
                )
        self.pages = pages
        self.prefix = PrefixCache(pages, page_size) if config.prefix_caching else None
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._page_size = page_size
        self._budget = shapes.max_batched_tokens
        self._max_model_len = max_model_len
        self._whole_prompts = whole_prompts
        self._policy = POLICIES[config.policy]
        self._sequences: dict[str, Sequence] = {}
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._slots = list(range(shapes.max_seqs - 1, -1, -1))
        self._added = 0

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Sequences that hold a slot, in the policy's order."""
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        """Sequences in the queue, in the policy's order."""
        return tuple(self._waiting)

    @property
    def num_running(self) -> int:
        """Number of sequences that hold a slot."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Number of sequences in the queue."""
        return len(self._waiting)

    @property
    def queued_tokens(self) -> int:
        """Tokens of prompts, and of sequences that lost their pages, that no step computes yet."""
        waiting = sum(len(sequence.tokens) for sequence in self._waiting)
        return waiting + sum(s.uncomputed for s in self._running if s.uncomputed > 1)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. Raises PromptTooLong or RequestError for one that could never produce a token."""
        length, limit = len(sequence.tokens), sequence.request.sampling.max_tokens
        if length >= self._max_model_len:
            raise PromptTooLong(
                f"the prompt has {length} tokens and the context {self._max_model_len}, "
                "one of which must be left for the reply: shorten the prompt or raise max_model_len",
                param="prompt",
                code="context_length_exceeded",
            )
        if sequence.prompt_len == 0:
            raise RequestError("the prompt is empty: it must have at least one token", param="prompt")
        if sequence.output_len >= limit:
            raise RequestError(f"the request has all of its max_tokens ({limit}) already", param="max_tokens")
        if sequence.id in self._sequences:
            raise RequestError(f"a request with the id {sequence.id!r} is in the engine already", param="id")
        sequence.order = self._added
        self._added += 1
        self._sequences[sequence.id] = sequence
        insort(self._waiting, sequence, key=self._policy)

    def abort(self, request_id: str) -> Sequence | None:
        """Drop a request, wherever it is; its pages and slot are free at once. None if it is not here (any more)."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self.finish(sequence)
        return sequence

    def finish(self, sequence: Sequence) -> None:
        """End a sequence: free its pages and slot. What steps in flight bring for it is dropped. Idempotent."""
        if sequence.status is Status.FINISHED:
            return
        if sequence.status is Status.RUNNING:
            self._evict(sequence)
        else:
            self._waiting.remove(sequence)
        sequence.status = Status.FINISHED
        del self._sequences[sequence.id]

    def schedule(self) -> StepPlan | None:
        """The next step, or None if no sequence can do anything before a step in flight has been committed.

        With nothing in flight, None means that there is no sequence left.
        """
        draft = _Draft(self._budget)
        ready = [s for s in self._running if s.in_flight < MAX_IN_FLIGHT and not self._is_ending(s)]
        for sequence in [s for s in ready if s.uncomputed == 1] + [s for s in ready if s.uncomputed > 1]:
            if sequence.status is Status.RUNNING:
                self._continue(sequence, draft)
        draft.promised = sum(max(0, self._pages_for(len(s.tokens)) - len(s.pages)) for s in self._running)
        while self._waiting and self._slots and draft.budget and not draft.short:
            if not self._admit(self._waiting[0], draft):
                break
        for sequence in draft.rows:
            self._register(sequence)
        return StepPlan(tuple(draft.rows.values())) if draft.rows else None

    def commit(self, row: RowPlan, token: int | None) -> Committed | None:
        """Accept a row's result, in the order of the plans. None if it is of no interest any more: the sequence has
        finished, or was preempted since and will sample the same token again.

        `token`: what the row sampled, None for a row that does not.
        """
        sequence = row.sequence
        if (token is None) == row.samples:
            raise ValueError(f"a row with samples={row.samples} cannot have the token {token}")
        if sequence.status is not Status.RUNNING or sequence.epoch != row.epoch:
            return None
        if token is None:
            return Committed(sequence, None)
        sequence.in_flight -= 1
        sequence.tokens.append(token)
        self._register(sequence)
        reason = self._finish_reason(sequence, token)
        if reason is not None:
            self.finish(sequence)
        return Committed(sequence, token, reason, token if reason == "stop" else None)

    def _finish_reason(self, sequence: Sequence, token: int) -> FinishReason | None:
        sampling = sequence.request.sampling
        if token in sampling.stop_token_ids and sequence.output_len > sampling.min_tokens:
            return "stop"
        return "length" if len(sequence.tokens) >= self._length_limit(sequence) else None

    def _length_limit(self, sequence: Sequence) -> int:
        """Tokens, prompt and output, at which the sequence ends."""
        return min(self._max_model_len, sequence.prompt_len + sequence.request.sampling.max_tokens)

    def _is_ending(self, sequence: Sequence) -> bool:
        """Whether the tokens in flight are the last ones that the sequence may have."""
        return sequence.planned_len >= self._length_limit(sequence)

    def _continue(self, sequence: Sequence, draft: _Draft) -> None:
        """Plan what a running sequence can do in this step, if there is budget and memory for it."""
        count = min(sequence.uncomputed, draft.budget)
        if count and self._grow(sequence, count, draft):
            self._plan(sequence, count, draft)

    def _plan(self, sequence: Sequence, count: int, draft: _Draft) -> None:
        """Add a row for a sequence that has the pages for it."""
        assert sequence.slot is not None
        start, end = sequence.computed, sequence.computed + count
        samples = end == sequence.planned_len
        draft.add(
            RowPlan(
                sequence=sequence,
                epoch=sequence.epoch,
                slot=sequence.slot,
                start=start,
                count=count,
                samples=samples,
                tokens=tuple(sequence.tokens[start:end]),
                pages=tuple(sequence.pages),
            )
        )
        draft.blocks.update(sequence.hashes[start // self._page_size : end // self._page_size])
        sequence.computed = end
        sequence.in_flight += samples

    def _grow(self, sequence: Sequence, count: int, draft: _Draft) -> bool:
        """Give a running sequence the pages for `count` more tokens, at the cost of those that the policy serves later.

        False if it must wait: it was itself the last, or sequences whose last token is in flight are about to give
        their pages back, which costs less than computing another one twice.
        """
        missing = self._pages_for(sequence.computed + count) - len(sequence.pages)
        while (pages := self.pages.allocate(max(missing, 0))) is None:
            draft.short = True
            if any(self._is_ending(other) for other in self._running):
                return False
            last = victim(self._running, self._policy)
            draft.drop(last)
            self._preempt(last)
            if last is sequence:
                return False
        sequence.pages += pages
        return True

    def _admit(self, sequence: Sequence, draft: _Draft) -> bool:
        """Start a waiting sequence. False if it must wait, with all that is behind it.

        It waits until the pool holds all of its known tokens beside what the running ones need for theirs, so that
        prompts do not push each other out half-way; but it holds only the pages of the chunk that is planned. It also
        waits where the step in the making computes the block that it would compute next: a step later it shares it.
        """
        if self._whole_prompts and len(sequence.tokens) > draft.budget:
            return False
        match = self._match(sequence)
        found, known = (match.pages, match.tokens) if match else ((), 0)
        if self._shares_next_block(sequence, len(found), draft):
            return False
        self.pages.retain(found)
        whole = self._pages_for(len(sequence.tokens))
        if whole - len(found) + draft.promised > self.pages.available:
            self.pages.release(found)
            return False
        count = min(len(sequence.tokens) - known, draft.budget)
        fresh = self.pages.allocate(self._pages_for(known + count) - len(found))
        assert fresh is not None, "no more than was found available above"
        if self._reads_prefix(sequence) and sequence.epoch == 0:
            self.prefix_queries += len(sequence.tokens)
            self.prefix_hits += known
        if sequence.cached_tokens is None:
            sequence.cached_tokens = min(known, sequence.prompt_len)
        del self._waiting[0]
        sequence.status = Status.RUNNING
        sequence.slot = self._slots.pop()
        sequence.pages = [*found, *fresh]
        sequence.computed = known
        sequence.registered = len(found)
        insort(self._running, sequence, key=self._policy)
        draft.promised += whole - len(sequence.pages)
        self._plan(sequence, count, draft)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Send a running sequence back to its place in the queue; it will be computed again from its tokens."""
        self._evict(sequence)
        sequence.status = Status.WAITING
        sequence.epoch += 1
        insort(self._waiting, sequence, key=self._policy)
        self.preemptions += 1

    def _evict(self, sequence: Sequence) -> None:
        """Take slot and pages from a running sequence."""
        assert sequence.slot is not None
        self._running.remove(sequence)
        self._slots.append(sequence.slot)
        self.pages.release(sequence.pages)
        sequence.slot = None
        sequence.pages = []
        sequence.computed = 0
        sequence.registered = 0
        sequence.in_flight = 0

    def _reads_prefix(self, sequence: Sequence) -> bool:
        """Whether the sequence may skip cached tokens: the prompt's log probabilities need all of them computed."""
        return self.prefix is not None and sequence.request.sampling.prompt_logprobs is None

    def _match(self, sequence: Sequence) -> PrefixMatch | None:
        if self.prefix is None:
            return None
        self.prefix.extend(sequence.hashes, sequence.tokens)
        return self.prefix.match(sequence.hashes, len(sequence.tokens)) if self._reads_prefix(sequence) else None

    def _shares_next_block(self, sequence: Sequence, matched: int, draft: _Draft) -> bool:
        """Whether the block after the `matched` ones is being computed by the step in the making."""
        shareable = (len(sequence.tokens) - 1) // self._page_size
        return self._reads_prefix(sequence) and matched < shareable and sequence.hashes[matched] in draft.blocks

    def _register(self, sequence: Sequence) -> None:
        """Offer full blocks to the prefix cache, once their tokens are known and planned steps have computed them."""
        if self.prefix is None:
            return
        self.prefix.extend(sequence.hashes, sequence.tokens)
        full = min(sequence.computed, len(sequence.tokens)) // self._page_size
        for block in range(sequence.registered, full):
            self.prefix.register(sequence.pages[block], sequence.hashes[block])
        sequence.registered = max(sequence.registered, full)

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self._page_size)
