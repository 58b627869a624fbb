from __future__ import annotations

import msgspec
import pytest

from slipstream.api.engine import EngineStats, TokenOutput, TransferStats
from slipstream.cluster.messages import Drop, Fetch, Prefill, Submit, Ticket, ToWorker, TransferInfo, new_ticket_id

INFO = TransferInfo(endpoint="unix:/a", kind="socket", secret_needed=False, model="m", layout="l", version="1")


@pytest.mark.parametrize(
    "message",
    [
        Prefill([], ["00" * 16]),
        Fetch([Ticket(id=new_ticket_id(), endpoint="tcp://127.0.0.1:1", kind="jax")], [[1, 2]]),
        Submit([], {"r": new_ticket_id()}),
        Drop([new_ticket_id()]),
    ],
)
def test_messages_come_as_they_went(message: ToWorker) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=ToWorker) == message


def test_a_submit_of_an_older_sender_has_no_tickets() -> None:
    old = msgspec.msgpack.encode({"type": "submit", "requests": []})
    assert msgspec.msgpack.decode(old, type=ToWorker) == Submit([])
    assert not TokenOutput(id="r", token_ids=[1]).handed


def test_tickets_cannot_be_guessed() -> None:
    made = {new_ticket_id() for _ in range(100)}
    assert len(made) == 100 and all(len(bytes.fromhex(one)) == 16 for one in made)


@pytest.mark.parametrize("field", ["kind", "model", "layout", "version"])
def test_workers_that_differ_do_not_fit(field: str) -> None:
    assert INFO.fits(msgspec.structs.replace(INFO, endpoint="unix:/b"))
    assert not INFO.fits(msgspec.structs.replace(INFO, **{field: "jax" if field == "kind" else "other"}))


def test_transfers_add_up() -> None:
    one = TransferStats(fetches=2, bytes_received=10, seconds=0.5, failures={"late": 1, "corrupt": 2})
    both = one + TransferStats(fetches=1, offers=4, failures={"late": 3, "forged": 1})
    assert both == TransferStats(
        fetches=3, offers=4, bytes_received=10, seconds=0.5, failures={"late": 4, "corrupt": 2, "forged": 1}
    )
    assert EngineStats().transfer + one == one
