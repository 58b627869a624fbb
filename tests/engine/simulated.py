"""A simulated device that runs plans in order and notices every wrong page, and a loop around it.

The device's "KV" of a token is a digest of all tokens up to it, and the "model" samples a function of that digest and
the request's seed. So a sequence that reads a page of other content, or one that was overwritten too early, is caught
at the read; and each request has one right reply, whatever else runs: the one that it would have alone.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from slipstream.api.engine import EngineRequest
from slipstream.api.sampling import TokenSampling
from slipstream.engine.config import EngineConfig
from slipstream.engine.pages import PagePool
from slipstream.engine.policy import POLICIES
from slipstream.engine.request import RowPlan, Sequence, Status, StepPlan
from slipstream.engine.scheduler import MAX_IN_FLIGHT, Scheduler
from slipstream.engine.shapes import ShapePolicy

VOCAB = 5
STOP = 4


def digest(before: int, token: int) -> int:
    """The simulated KV of a token behind those that made `before`."""
    return hash((before, token))


def draw(kv: int, seed: int, output_len: int, min_tokens: int) -> int:
    """The simulated model and sampler: a function of the history and the request alone."""
    token = hash((kv, seed)) % 97 % VOCAB
    return 0 if token == STOP and output_len < min_tokens else token


def reply(request: EngineRequest, max_model_len: int) -> tuple[list[int], str]:
    """What a request must get: its output from the first token on, and why it ends."""
    kv, output, sampling = 0, list(request.output_token_ids), request.sampling
    for token in [*request.prompt_token_ids, *output]:
        kv = digest(kv, token)
    while True:
        output.append(draw(kv, sampling.seed, len(output), sampling.min_tokens))
        kv = digest(kv, output[-1])
        if output[-1] in sampling.stop_token_ids:
            return output, "stop"
        if len(output) >= sampling.max_tokens or len(request.prompt_token_ids) + len(output) >= max_model_len:
            return output, "length"


class Device:
    """Pages and per-slot histories. `run` is a step: all its rows write, then all read."""

    def __init__(self, num_pages: int, page_size: int, max_seqs: int) -> None:
        self.kv: list[list[int | None]] = [[None] * page_size for _ in range(num_pages)]
        self.history: list[list[int]] = [[] for _ in range(max_seqs)]
        self.owner: list[tuple[Sequence, int] | None] = [None] * max_seqs
        self.page_size = page_size

    def run(self, plan: StepPlan) -> list[int | None]:
        """Execute a plan; a token for each row that samples."""
        holders = Counter(page for row in plan.rows for page in row.pages)
        for row in plan.rows:
            self.fill(row)
            for position in range(row.start, row.start + row.count):
                page = row.pages[position // self.page_size]
                assert holders[page] == 1, f"page {page} is written while another row reads it"
                self.kv[page][position % self.page_size] = self.digests(row)[position]
        results = []
        for row in plan.rows:
            expected = self.digests(row)
            for position in range(row.start + row.count):
                found = self.kv[row.pages[position // self.page_size]][position % self.page_size]
                assert found == expected[position], f"{row.sequence.id} reads another's KV at {position}"
            results.append(self.sample(row, expected[row.start + row.count - 1]) if row.samples else None)
        return results

    def fill(self, row: RowPlan) -> None:
        """Give the slot its tokens when it changes hands, and check those that the plan states."""
        if self.owner[row.slot] != (row.sequence, row.epoch):
            self.owner[row.slot] = (row.sequence, row.epoch)
            self.history[row.slot] = list(row.sequence.tokens)
            assert row.sequence.in_flight == row.samples, "a slot is filled while a token is on its way elsewhere"
        history = self.history[row.slot]
        assert len(history) >= row.start + row.count, "a token is computed before it was sampled"
        assert len(row.tokens) in (row.count, row.count - 1)
        assert list(row.tokens) == history[row.start : row.start + len(row.tokens)]

    def digests(self, row: RowPlan) -> list[int]:
        """The right KV of a row's sequence up to the row's end."""
        kv, result = 0, []
        for token in self.history[row.slot][: row.start + row.count]:
            kv = digest(kv, token)
            result.append(kv)
        return result

    def sample(self, row: RowPlan, kv: int) -> int:
        sampling, length = row.sequence.request.sampling, row.start + row.count
        token = draw(kv, sampling.seed, length - row.sequence.prompt_len, sampling.min_tokens)
        history = self.history[row.slot]
        assert len(history) == length, "a token is sampled twice in one epoch"
        history.append(token)
        return token


@dataclass
class World:
    """A scheduler, its device, and a loop that reads results `behind` steps late; the engine's reads them one late."""

    num_pages: int = 8
    page_size: int = 2
    max_seqs: int = 4
    budget: int = 8
    max_model_len: int = 16
    policy: str = "fcfs"
    prefix_caching: bool = True
    behind: int = 1
    requests: dict[str, EngineRequest] = field(default_factory=dict)
    right: dict[str, tuple[list[int], str]] = field(default_factory=dict)
    answers: dict[str, tuple[list[int], str]] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)
    plans: list[tuple[tuple[str, int, int, int, tuple[int, ...]], ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = EngineConfig(
            max_seqs=self.max_seqs,
            max_batched_tokens=self.budget,
            page_size=self.page_size,
            policy=self.policy,
            prefix_caching=self.prefix_caching,
        )
        self.pool = PagePool(self.num_pages)
        self.shapes = ShapePolicy(self.max_seqs, self.budget, -(-self.max_model_len // self.page_size))
        self.scheduler = Scheduler(config, self.pool, self.shapes, self.max_model_len)
        self.device = Device(self.num_pages, self.page_size, self.max_seqs)
        self.in_flight: deque[tuple[StepPlan, list[int | None]]] = deque()

    def add(self, request: EngineRequest) -> None:
        self.requests[request.id] = request
        self.right[request.id] = reply(request, self.max_model_len)
        self.scheduler.add(Sequence.of(request))

    def abort(self, request_id: str) -> None:
        sequence = self.scheduler.abort(request_id)
        assert (sequence is None) == (request_id in self.answers or request_id in self.aborted)
        if sequence is not None:
            assert sequence.pages == [] and sequence.slot is None
            self.aborted.add(request_id)

    def step(self) -> bool:
        """One turn of the loop: plan and start a step, read the one `behind` before it. False if nothing is left."""
        before = {s: (s.computed, s.in_flight) for s in self.scheduler.running}
        decoding = [s for s in self.scheduler.running if s.uncomputed == 1]
        preempted = self.scheduler.preemptions
        plan = self.scheduler.schedule()
        if plan is None:
            assert self.in_flight or not (self.scheduler.num_running or self.scheduler.num_waiting), "stuck"
        order = POLICIES[self.policy]
        for s in before:
            if s.status is Status.WAITING:
                assert all(order(other) < order(s) for other in self.scheduler.running), "the wrong one gave way"
        if plan is not None:
            self.check_plan(plan)
            planned = {row.sequence for row in plan.rows}
            if self.scheduler.preemptions == preempted and self.pool.available:
                for s in decoding:
                    computed, flying = before[s]
                    limit = min(self.max_model_len, s.prompt_len + s.request.sampling.max_tokens)
                    may_go_on = flying < MAX_IN_FLIGHT and computed + 1 < limit
                    assert s in planned or not may_go_on, "a decode waited although there were pages"
            self.in_flight.append((plan, self.device.run(plan)))
        if len(self.in_flight) > (self.behind if plan else 0):
            self.read(*self.in_flight.popleft())
        return bool(self.in_flight or self.scheduler.num_running or self.scheduler.num_waiting)

    def read(self, plan: StepPlan, tokens: list[int | None]) -> None:
        for row, token in zip(plan.rows, tokens, strict=True):
            sequence = row.sequence
            known = list(sequence.tokens)
            done = self.scheduler.commit(row, token)
            if done is None:
                assert sequence.status is Status.FINISHED or sequence.epoch > row.epoch
                assert sequence.tokens == known
                continue
            assert done.sequence is sequence and done.token == token
            assert sequence.tokens == known + ([] if token is None else [token])
            if done.finish_reason is not None:
                assert sequence.id not in self.answers and sequence.id not in self.aborted
                assert done.stop_reason == (token if done.finish_reason == "stop" else None)
                self.answers[sequence.id] = (sequence.tokens[sequence.prompt_len :], done.finish_reason)

    def check_plan(self, plan: StepPlan) -> None:
        assert 0 < len(plan.rows) <= self.max_seqs and plan.num_tokens <= self.budget
        assert len({row.slot for row in plan.rows}) == len(plan.rows) == len({row.sequence.id for row in plan.rows})
        self.shapes.shape_for(plan.num_tokens, len(plan.rows), all(row.count == 1 for row in plan.rows))
        for row in plan.rows:
            assert row.count > 0 and row.sequence.status is Status.RUNNING
            assert row.epoch == row.sequence.epoch and row.slot == row.sequence.slot
            assert row.sequence.in_flight <= 2 and row.sequence.planned_len <= self.max_model_len
            assert row.sequence.output_len + row.sequence.in_flight <= row.sequence.request.sampling.max_tokens
            assert len(row.pages) == -(-(row.start + row.count) // self.page_size), "pages beyond the planned tokens"
        self.plans.append(tuple((row.sequence.id, row.slot, row.start, row.count, row.pages) for row in plan.rows))

    def check(self) -> None:
        """What holds between any two calls."""
        scheduler, pool = self.scheduler, self.pool
        held = Counter(page for s in scheduler.running for page in s.pages)
        assert [pool.references(page) for page in range(self.num_pages)] == [held[p] for p in range(self.num_pages)]
        assert pool.used == len(held) and pool.used + pool.cached + pool.free == self.num_pages
        assert len({s.slot for s in scheduler.running}) == scheduler.num_running <= self.max_seqs
        for s in scheduler.waiting:
            assert (s.status, s.pages, s.slot, s.in_flight) == (Status.WAITING, [], None, 0)
        for queue in (scheduler.running, scheduler.waiting):
            assert list(queue) == sorted(queue, key=POLICIES[self.policy])
        for s in (*scheduler.running, *scheduler.waiting):
            assert s.tokens[s.prompt_len :] == self.right[s.id][0][: s.output_len], "a token is missing or came twice"

    def drain(self) -> None:
        """Run until nothing is left; then everybody has the right answer and nothing is held."""
        bound = 50 + 4 * sum(len(r.prompt_token_ids) + r.sampling.max_tokens for r in self.requests.values())
        while self.step():
            bound -= 1
            assert bound > 0, "no progress"
        self.check()
        assert self.scheduler.num_running == self.scheduler.num_waiting == self.pool.used == 0
        assert self.answers.keys() | self.aborted == self.requests.keys()
        assert self.answers == {name: right for name, right in self.right.items() if name not in self.aborted}


def request(
    name: str,
    prompt: list[int],
    *,
    max_tokens: int = 8,
    min_tokens: int = 0,
    seed: int = 0,
    stop: bool = True,
    priority: int = 0,
    arrival: float = 0.0,
    prompt_logprobs: int | None = None,
) -> EngineRequest:
    sampling = TokenSampling(
        max_tokens=max_tokens,
        min_tokens=min(min_tokens, max_tokens),
        seed=seed,
        stop_token_ids=(STOP,) if stop else (),
        prompt_logprobs=prompt_logprobs,
    )
    return EngineRequest(id=name, prompt_token_ids=prompt, sampling=sampling, priority=priority, arrival=arrival)
