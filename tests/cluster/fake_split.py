"""Fake workers that play prefill and decode: the loop of a worker, with tickets that carry nothing.

What they send is what real ones do; no KV page moves, so a decode worker computes everything itself, which is what a
real one does when a transfer fails. `engine.stats().transfer` counts what they were asked for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from slipstream.api.engine import EngineStats, TransferStats
from slipstream.cluster.config import WorkerConfig
from slipstream.cluster.messages import Abort, Drop, Fetch, Prefill, Ready, Shutdown, Submit, TransferInfo
from tests.cluster import fake_engine
from tests.cluster.fake_engine import FakeEngine, FakeOptions

FACTORY = "tests.cluster.fake_split:build"
HELD_SECONDS = 0.02


class SplitEngine(FakeEngine):
    def __init__(self, options: FakeOptions, incarnation: int) -> None:
        super().__init__(options, incarnation)
        self.offers = self.fetches = 0

    def stats(self) -> EngineStats:
        transfer = TransferStats(offers=self.offers, fetches=self.fetches)
        return msgspec.structs.replace(super().stats(), transfer=transfer)


def serve(engine: SplitEngine, link: Any, desk: None) -> None:
    prefilling: set[str] = set()
    tickets: set[str] = set()
    held: dict[str, tuple[float, str, Any]] = {}
    while True:
        outputs, reports = [], False
        for message in link.receive(wait=not engine.has_work and not held):
            reports = True
            match message:
                case Submit(requests=requests, tickets=used):
                    for request in requests:
                        if used.get(request.id) in tickets:
                            engine.fetches += 1
                            held[request.id] = (time.monotonic() + HELD_SECONDS, used[request.id], request)
                        else:
                            engine.add(request)
                case Prefill(requests=requests):
                    engine.offers += len(requests)
                    for request in requests:
                        engine.add(request)
                        prefilling.add(request.id)
                case Fetch(tickets=more, prompts=prompts):
                    assert len(prompts) == len(more)
                    tickets.update(ticket.id for ticket in more)
                case Drop(tickets=gone):
                    tickets.difference_update(gone)
                case Abort(ids=ids):
                    for name in ids:
                        engine.abort(name)
                        held.pop(name, None)
                        prefilling.discard(name)
                case Shutdown():
                    return
        for name, (until, ticket, request) in list(held.items()):
            if ticket not in tickets or time.monotonic() >= until:
                del held[name]
                tickets.discard(ticket)
                engine.add(request)
        if engine.has_work:
            for output in engine.step():
                handed = output.id in prefilling and output.finish_reason is None
                if output.id in prefilling:
                    prefilling.discard(output.id)
                    engine.abort(output.id)
                outputs.append(msgspec.structs.replace(output, handed=handed))
        elif held:
            time.sleep(0.001)
        if outputs or reports:
            link.send_outputs(outputs, engine.stats())


def no_desk(engine: Any, config: WorkerConfig, wake: Callable[[], None]) -> None:
    """In place of the worker's: nothing moves."""


def build_without(config: WorkerConfig, report: Callable[[str, int, int], None]) -> FakeEngine:
    """A worker that says that it moves no pages."""
    main: Any = sys.modules["__main__"]
    main.open_desk = no_desk
    return fake_engine.build(config, report)


def build(config: WorkerConfig, report: Callable[[str, int, int], None]) -> SplitEngine:
    options = msgspec.json.decode(config.model, type=FakeOptions)
    fake_engine.build(config, report)  # its ways to fail at the start
    main: Any = sys.modules["__main__"]
    main.serve, main.open_desk = serve, no_desk
    transfer = TransferInfo(
        endpoint=f"unix:{config.identity}",
        kind="socket",
        secret_needed=False,
        model="fake",
        layout=options.decode_layout if config.role == "decode" else "pages of 16",
        version="1",
    )

    def announce(link: Any, info: Any, nothing: None) -> None:
        link.send(Ready(config.incarnation, info, None if config.transfer is None else transfer))

    main.Link.announce = announce
    return SplitEngine(options, config.incarnation)
