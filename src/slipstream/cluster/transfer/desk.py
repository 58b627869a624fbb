"""A worker's part in requests that two workers share: what the messages about tickets do to its engine.

Called by the engine's thread alone. The worker's loop hands it messages and outputs, and calls `arrivals` before each
step and `after` behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from msgspec.structs import replace

import slipstream
from slipstream.api.engine import EngineRequest, EngineStats, TokenOutput, TransferStats
from slipstream.checkpoint import open_checkpoint
from slipstream.checkpoint.fingerprint import fingerprint
from slipstream.cluster.config import WorkerConfig
from slipstream.cluster.messages import Drop, Fetch, Prefill, Submit, TransferInfo
from slipstream.cluster.transfer.address import Listener, host_of
from slipstream.cluster.transfer.fetches import Fetches
from slipstream.cluster.transfer.kinds import KINDS
from slipstream.cluster.transfer.offers import Offers
from slipstream.cluster.transfer.tally import Tally
from slipstream.engine.loop import Engine
from slipstream.errors import ConfigError


@dataclass(frozen=True)
class _Handing:
    """A request that is computed here up to its next token. `last`: that token is the last that it may have."""

    ticket: str
    last: bool


class Desk:
    """One worker's tickets. `info` is what others must know to fetch from it."""

    def __init__(self, engine: Engine, config: WorkerConfig, model: str, wake: Callable[[], None]) -> None:
        """`model`: what `fingerprint_of` says. `wake()`, from any thread, ends the worker's wait for messages.

        Raises ConfigError for an engine or an address that pages cannot be moved with.
        """
        if config.transfer is None or engine.exchange is None:
            raise ConfigError("this engine's KV pages cannot be moved: leave --prefill and --decode out")
        self._engine = engine
        self._exchange = exchange = engine.exchange
        self._tally = Tally()
        self._reported: TransferStats = self._tally.stats
        self._handing: dict[str, _Handing] = {}
        self._held: dict[str, tuple[EngineRequest, str]] = {}
        secret = config.secret or ""
        kind = KINDS[config.transfer](exchange.io, host_of(config.transfer_endpoint))
        listener = Listener(config.transfer_endpoint, secret) if config.role != "decode" else None
        self.info = TransferInfo(
            endpoint="" if listener is None else listener.endpoint,
            kind=config.transfer,
            secret_needed=listener is not None and listener.beyond,
            model=model,
            layout=exchange.io.shape.digest(),
            version=slipstream.__version__,
        )
        self._offers: Offers | None = None
        if listener is not None:
            self._offers = Offers(listener, self.info, secret, kind.sender, self._tally, wake)
        self._fetches = Fetches(self.info, secret, kind.receiver, exchange.io.most, self._tally, wake)

    def handle(self, message: Submit | Prefill | Fetch | Drop) -> list[EngineRequest]:
        """Take a message; returns the requests that the engine is to be given now."""
        match message:
            case Submit(requests=requests, tickets=tickets):
                return [request for request in requests if not self._hold(request, tickets.get(request.id))]
            case Prefill(requests=requests, tickets=ids, deadline_seconds=seconds):
                return [self._offer(request, id_, seconds) for request, id_ in zip(requests, ids, strict=False)]
            case Fetch(tickets=tickets, prompts=prompts):
                for ticket, prompt in zip(tickets, prompts, strict=False):
                    digests = self._exchange.digests(prompt)
                    self._fetches.start(ticket, digests, self._exchange.missing(digests))
            case Drop(tickets=ids):
                for ticket_id in ids:
                    self._fetches.drop(ticket_id)
                    if self._offers is not None:
                        self._offers.drop(ticket_id, self._exchange)
        return []

    def abort(self, ids: Iterable[str]) -> None:
        """Forget requests, and their tickets."""
        for request_id in ids:
            _, ticket = self._held.pop(request_id, (None, None))
            if ticket is not None:
                self._fetches.drop(ticket)
            handing = self._handing.pop(request_id, None)
            if handing is not None and self._offers is not None:
                self._offers.drop(handing.ticket, self._exchange)

    def arrivals(self) -> list[EngineRequest]:
        """Write the pages that have come; returns the requests that need not wait any more."""
        self._fetches.turn(self._exchange)
        ready = [name for name, (_, ticket) in self._held.items() if not self._fetches.under_way(ticket)]
        requests = []
        for name in ready:
            request, ticket = self._held.pop(name)
            self._fetches.drop(ticket)
            requests.append(request)
        return requests

    def after(self, outputs: Iterable[TokenOutput]) -> tuple[list[TokenOutput], float | None]:
        """What to send of a step's outputs, and in how many seconds the next turn is due, if anything waits."""
        sent = [self._passed_on(output) for output in outputs]
        due = [self._fetches.turn(self._exchange)]
        if self._offers is not None:
            due.append(self._offers.turn(self._exchange))
        return sent, min((seconds for seconds in due if seconds is not None), default=None)

    @property
    def news(self) -> bool:
        """Whether there are counts that `counted` has not reported."""
        return self._tally.stats is not self._reported

    def counted(self, stats: EngineStats) -> EngineStats:
        """The engine's statistics with those of transfers."""
        self._reported = self._tally.stats
        return replace(stats, waiting=stats.waiting + len(self._held), transfer=self._reported)

    def close(self) -> None:
        """Let go of sockets."""
        self._fetches.close()
        if self._offers is not None:
            self._offers.close()

    def _hold(self, request: EngineRequest, ticket: str | None) -> bool:
        if ticket is None or not self._fetches.under_way(ticket):
            return False
        self._held[request.id] = request, ticket
        return True

    def _offer(self, request: EngineRequest, ticket: str, seconds: float) -> EngineRequest:
        if self._offers is None:
            return request
        tokens, count = [*request.prompt_token_ids, *request.output_token_ids], len(request.output_token_ids) + 1
        last = count >= request.sampling.max_tokens or len(tokens) + 1 >= self._engine.info.max_model_len
        self._handing[request.id] = _Handing(ticket, last)
        self._offers.open(ticket, self._exchange.digests(tokens), seconds)
        return replace(request, sampling=replace(request.sampling, max_tokens=count))

    def _passed_on(self, output: TokenOutput) -> TokenOutput:
        handing = self._handing.get(output.id)
        if handing is None or output.finish_reason is None:
            return output
        del self._handing[output.id]
        assert self._offers is not None
        if output.finish_reason != "length" or handing.last:
            self._offers.drop(handing.ticket, self._exchange)
            return output
        self._offers.over(handing.ticket)
        return replace(output, finish_reason=None, handed=True)


def fingerprint_of(model: Path, dtype: str) -> str:
    """A name for a model's weights and the type that it computes in: the same for a copy on another machine.

    Raises the errors of opening a checkpoint.
    """
    checkpoint = open_checkpoint(model)
    files = [(Path(name).name, size, digest) for name, size, _, digest in fingerprint(checkpoint) or []]
    facts = repr((sorted(checkpoint.config.items(), key=str), files, dtype))
    return blake2b(facts.encode(), digest_size=16).hexdigest()
