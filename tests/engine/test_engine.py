"""The whole engine on a tiny random model: what it says must be what one full forward a token says."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from slipstream.api.engine import TokenLogprobs, TokenOutput
from slipstream.engine.loop import Engine
from slipstream.errors import ConfigError, OutOfMemory, PromptTooLong, RequestError
from tests.engine import tiny

RNG = np.random.default_rng(1)
PROMPTS = [RNG.integers(0, 211, size=n).tolist() for n in (1, 3, 17, 40, 70, 5, 33, 12)]


@pytest.fixture(scope="module")
def engine() -> Engine:
    """One engine for all tests that leave it empty."""
    return tiny.engine()


@pytest.fixture(scope="module")
def cramped() -> Engine:
    """An engine whose KV cache holds 26 pages of 4 tokens: sequences push each other out."""
    page = 2 * 2 * 4 * 2 * 8 * 4
    return tiny.engine(kv_bytes=26 * page, max_model_len=96)


def assert_idle(engine: Engine) -> None:
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)


def test_greedy_replies_equal_the_full_forward(engine: Engine) -> None:
    outputs = tiny.run(engine, [tiny.request(str(i), prompt, max_tokens=12) for i, prompt in enumerate(PROMPTS)])
    for i, prompt in enumerate(PROMPTS):
        assert tiny.tokens(outputs[str(i)]) == tiny.greedy(prompt, 12), f"prompt {i}"
        assert [o.finish_reason for o in outputs[str(i)]] == [None] * 11 + ["length"]
    assert_idle(engine)


def test_the_first_output_tells_how_long_a_request_waited_and_its_prompt_took(engine: Engine) -> None:
    """The fifth request waits for one of the four slots."""
    lengths = (3, 9, 9, 9, 2)
    requests = [tiny.request(str(i), PROMPTS[i], max_tokens=count) for i, count in enumerate(lengths)]
    outputs = tiny.run(engine, requests)
    firsts = [outputs[str(i)][0] for i in range(5)]
    waits = [first.queue_seconds or 0.0 for first in firsts]
    assert all(first.prefill_seconds is not None and first.prefill_seconds > 0 for first in firsts)
    assert waits[4] > (firsts[0].prefill_seconds or 0.0) and waits[4] > max(waits[:4])
    assert all(o.queue_seconds is None and o.prefill_seconds is None for i in range(5) for o in outputs[str(i)][1:])


def test_cached_prefixes_give_the_same_reply_and_are_reported(engine: Engine) -> None:
    prompt = RNG.integers(0, 211, size=45).tolist()
    first = tiny.run(engine, [tiny.request("a", prompt)])["a"]
    again = tiny.run(engine, [tiny.request("b", prompt), tiny.request("c", [*prompt[:30], 7, 8])])
    assert first[0].cached_tokens == 0
    assert again["b"][0].cached_tokens == 44
    assert again["c"][0].cached_tokens == 28
    assert tiny.tokens(again["b"]) == tiny.tokens(first) == tiny.greedy(prompt, 8)
    assert tiny.tokens(again["c"]) == tiny.greedy([*prompt[:30], 7, 8], 8)


def test_a_seed_gives_the_same_tokens_alone_in_a_batch_and_under_preemption(engine: Engine, cramped: Engine) -> None:
    def hot(i: int, name: str) -> object:
        return tiny.request(
            name, PROMPTS[i], temperature=1.0, top_p=0.95, seed=100 + i, max_tokens=20, repetition_penalty=1.1
        )

    alone = [tiny.tokens(tiny.run(engine, [hot(i, "x")])["x"]) for i in range(len(PROMPTS))]
    before = cramped.stats().preemptions
    for crowd in (engine, cramped):
        together = tiny.run(crowd, [hot(i, str(i)) for i in range(len(PROMPTS))])
        assert [tiny.tokens(together[str(i)]) for i in range(len(PROMPTS))] == alone
        assert_idle(crowd)
    assert cramped.stats().preemptions > before, "the test must have preempted somebody"
    assert len(set(map(tuple, alone))) == len(PROMPTS)


def test_a_replay_goes_on_where_it_was(engine: Engine) -> None:
    fields = {"temperature": 1.0, "seed": 9, "max_tokens": 14, "frequency_penalty": 0.5, "min_tokens": 3}
    whole = tiny.tokens(tiny.run(engine, [tiny.request("w", PROMPTS[2], **fields)])["w"])
    for cut in (1, 5, 13):
        replay = msgspec.structs.replace(tiny.request("r", PROMPTS[2], **fields), output_token_ids=whole[:cut])
        assert tiny.tokens(tiny.run(engine, [replay])["r"]) == whole[cut:]


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def assert_position(at: TokenLogprobs, logits: np.ndarray, token: int, top: int) -> None:
    p = log_softmax(logits)
    assert at.token_id == token
    assert at.logprob == pytest.approx(p[token], abs=1e-5)
    assert at.rank == (logits > logits[token]).sum() + 1
    assert at.top_ids == np.argsort(-logits, kind="stable")[:top].tolist()
    np.testing.assert_allclose(at.top_logprobs, p[at.top_ids], atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 33, 65, 70])
def test_log_probabilities_of_reply_and_prompt(engine: Engine, length: int) -> None:
    """33 and 65 leave a chunk of one token, which must not take a shape for decoding alone."""
    prompt = RNG.integers(0, 211, size=length).tolist()
    wants = tiny.request("a", prompt, temperature=1.0, seed=3, logprobs=3, prompt_logprobs=2)
    others = [tiny.request(f"o{i}", p, max_tokens=10) for i, p in enumerate(PROMPTS[:3])]
    outputs = tiny.run(engine, [*others, wants])["a"]
    reply = tiny.tokens(outputs)
    logits = tiny.full_logits(prompt + reply)
    for i, token in enumerate(reply):
        [at] = outputs[i].logprobs or []
        assert_position(at, logits[length - 1 + i], token, 3)
    assert len(outputs[0].prompt_logprobs or []) == length - 1
    for i, at in enumerate(outputs[0].prompt_logprobs or [], 1):
        assert_position(at, logits[i - 1], prompt[i], 2)
    assert all(o.prompt_logprobs is None for o in outputs[1:])


def test_prompt_log_probabilities_survive_preemption(cramped: Engine) -> None:
    prompt = PROMPTS[3]
    before = cramped.stats().preemptions
    crowd = [tiny.request(f"o{i}", PROMPTS[6], max_tokens=40, temperature=1.0, seed=i) for i in range(3)]
    wants = tiny.request("a", prompt, prompt_logprobs=0, max_tokens=30)
    outputs = tiny.run(cramped, [*crowd, wants])["a"]
    assert cramped.stats().preemptions > before
    logits = tiny.full_logits(prompt)
    found = [o.prompt_logprobs for o in outputs if o.prompt_logprobs is not None]
    assert len(found) == 1
    for i, at in enumerate(found[0], 1):
        assert_position(at, logits[i - 1], prompt[i], 0)


def test_stop_tokens_end_a_reply_and_min_tokens_holds_them_off(engine: Engine) -> None:
    plain = tiny.greedy(PROMPTS[2], 8)
    stop = plain[3]
    first = plain.index(stop)
    outputs = tiny.run(engine, [tiny.request("a", PROMPTS[2], stop_token_ids=(stop,))])["a"]
    assert tiny.tokens(outputs) == plain[: first + 1]
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", stop)
    held = tiny.run(engine, [tiny.request("a", PROMPTS[2], stop_token_ids=(stop,), min_tokens=8)])["a"]
    assert stop not in tiny.tokens(held)
    assert len(tiny.tokens(held)) == 8


def test_bias_and_bad_words(engine: Engine) -> None:
    plain = tiny.greedy(PROMPTS[4], 8)
    forced = tiny.run(engine, [tiny.request("a", PROMPTS[4], logit_bias=((42, 100.0),))])["a"]
    assert tiny.tokens(forced) == [42] * 8
    banned = tiny.run(engine, [tiny.request("a", PROMPTS[4], bad_token_ids=((plain[0],), tuple(plain[1:3])))])["a"]
    assert plain[0] not in tiny.tokens(banned)


def test_an_aborted_request_says_nothing_more_and_frees_its_pages(engine: Engine) -> None:
    engine.add(tiny.request("gone", PROMPTS[4], max_tokens=100))
    engine.add(tiny.request("stays", PROMPTS[3], max_tokens=10))
    outputs: list[TokenOutput] = []
    while len(outputs) < 4:
        outputs += engine.step()
    assert engine.abort("gone")
    assert not engine.abort("gone")
    assert engine.stats().running == 1
    after = tiny.run(engine)
    assert set(after) == {"stays"}
    kept = [t for o in outputs if o.id == "stays" for t in o.token_ids]
    assert kept + tiny.tokens(after["stays"]) == tiny.greedy(PROMPTS[3], 10)
    assert_idle(engine)


def test_replies_end_at_the_models_context(cramped: Engine) -> None:
    outputs = tiny.run(cramped, [tiny.request("a", PROMPTS[4], max_tokens=1000)])["a"]
    assert len(tiny.tokens(outputs)) == 96 - 70
    assert outputs[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "kind", "words"),
    [
        ([], RequestError, "empty"),
        ([211], RequestError, "token id 211 is outside the model's vocabulary of 211"),
        ([-1], RequestError, "token id -1"),
        ([1] * 256, PromptTooLong, "256"),
    ],
)
def test_requests_that_cannot_be_served(engine: Engine, prompt: Sequence[int], kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        engine.add(tiny.request("bad", prompt))
    assert not engine.has_work


def test_memory_that_does_not_fit_is_refused_with_numbers() -> None:
    with pytest.raises(OutOfMemory, match=r"lower --kv-bytes or raise --memory-fraction"):
        tiny.engine(kv_bytes=2**50)
    with pytest.raises(OutOfMemory, match=r"lower --max-model-len to 4,"):
        tiny.engine(kv_bytes=2 * 2 * 4 * 2 * 8 * 4, max_model_len=64)
    with pytest.raises(ConfigError, match=r"max_model_len 300 is more than the 256 tokens"):
        tiny.engine(max_model_len=300)


def test_the_context_shrinks_to_the_cache_when_none_was_asked_for() -> None:
    small = tiny.engine(kv_bytes=10 * 2 * 2 * 4 * 2 * 8 * 4, max_seqs=1)
    assert small.info.num_pages == 10
    assert small.info.max_model_len == 40


def test_nothing_compiles_once_ready(engine: Engine) -> None:
    everything = {
        "temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9, "repetition_penalty": 1.1,
        "frequency_penalty": 0.1, "presence_penalty": 0.1, "logit_bias": ((1, 1.0),), "min_tokens": 2,
        "stop_token_ids": (2,), "bad_token_ids": ((3,),), "logprobs": 5, "prompt_logprobs": 5,
    }  # fmt: skip
    before = engine.stats().compiles
    tiny.run(engine, [tiny.request(str(i), prompt, **everything) for i, prompt in enumerate(PROMPTS)])
    assert engine.stats().compiles == before
    assert engine.info.num_shapes <= before


def test_padding_and_steps_are_counted(engine: Engine) -> None:
    before = engine.stats()
    tiny.run(engine, [tiny.request("a", RNG.integers(0, 211, size=20).tolist(), max_tokens=5)])
    after = engine.stats()
    assert after.scheduled_tokens - before.scheduled_tokens == 24
    assert after.padded_tokens - before.padded_tokens == 12  # 20 tokens in a shape of 32; decodes of 1 in a shape of 1
    assert after.steps - before.steps == 5
    assert len(after.step_seconds) == len(after.step_tokens) == 5
    assert after.prompt_tokens - before.prompt_tokens == 20
    assert after.generation_tokens - before.generation_tokens == 5
