"""Log probabilities stay with the text, whatever the tokens, the stop strings and the outputs' borders are."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.api.engine import EngineRequest, TokenOutput
from slipstream.api.sampling import TokenSampling
from slipstream.text.choice import Choice, Delta

from .memory_client import scores
from .toys import EOS_ID, TOKENIZER, ids


def run(tokens: list[int], borders: list[int], stop: list[str], *, include_stop: bool) -> tuple[Choice, list[Delta]]:
    """Feed the tokens, cut at the borders, as an engine would that ends with EOS."""
    request = EngineRequest(
        id="r", prompt_token_ids=[1], sampling=TokenSampling(logprobs=0, max_tokens=len(tokens) + 1)
    )
    choice = Choice(
        0, request, TOKENIZER, stop=stop, include_stop=include_stop, eos_token_ids=[EOS_ID] if EOS_ID else []
    )
    tokens = [*tokens, EOS_ID or 0]
    cuts = sorted({0, len(tokens), *(b for b in borders if b < len(tokens))})
    deltas = []
    for start, end in itertools.pairwise(cuts):
        part = tokens[start:end]
        last = end == len(tokens)
        output = TokenOutput(
            id="r",
            token_ids=part,
            logprobs=[scores(t, 0) for t in part],
            finish_reason="stop" if last else None,
            stop_reason=EOS_ID if last else None,
        )
        deltas.append(choice.feed(output, float(start)))
        if choice.finish_reason is not None:
            break
    return choice, deltas


TEXTS = st.text(alphabet="abé漢🎉 ", max_size=12)


@settings(deadline=None, max_examples=200, database=None)
@given(
    TEXTS,
    st.lists(st.integers(0, 30)),
    st.lists(st.text(alphabet="abé ", min_size=1, max_size=3), max_size=2),
    st.booleans(),
)
def test_positions_fit_the_text(text: str, borders: list[int], stop: list[str], include_stop: bool) -> None:
    choice, deltas = run(ids(text), borders, stop, include_stop=include_stop)
    said = "".join(delta.text for delta in deltas)
    ends = [text.find(s) + (len(s) if include_stop else 0) for s in stop if s in text]
    assert said == (text if not ends else said)
    assert text.startswith(said)
    positions = [position for delta in deltas for position in delta.positions]
    tokens = [position.logprobs.token_id for position in positions]
    cut = choice.stop_reason is not None
    assert tokens == ids(said) + ([] if cut else [EOS_ID])
    # A token's offset is where its character starts (its bytes are one token each here).
    starts = [i for i, character in enumerate(said) for _ in character.encode()]
    assert [position.offset for position in positions] == starts + ([] if cut else [len(said)])
    given_out = 0
    sent = ""
    for delta in deltas:
        sent += delta.text
        given_out += len(delta.positions)
        whole = len(sent.encode())
        assert given_out in (whole, whole + 1) if delta.finish_reason else given_out == whole


def test_extending_is_feeding_at_once() -> None:
    _, one = run(ids("héllo"), [], [], include_stop=False)
    _, many = run(ids("héllo"), [1, 2, 3, 4], [], include_stop=False)
    first = many[0]
    for later in many[1:]:
        first.extend(later)
    assert (first.text, first.token_ids, first.positions) == (one[0].text, one[0].token_ids, one[0].positions)
    assert (first.finish_reason, first.stop_reason) == ("stop", None)
