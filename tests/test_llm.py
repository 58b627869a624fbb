"""`LLM` on the real default model: answers, vLLM's output shapes, stop strings, refusals."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slipstream import LLM, SamplingParams
from slipstream.api.outputs import RequestOutput
from slipstream.errors import ConfigError, NoChatTemplate, NoTokenizer, PromptTooLong, RequestError
from slipstream.text import Tokenizer
from tests.engine import tiny

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = SamplingParams(temperature=0, max_tokens=16)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    """SmolLM2-135M with few step shapes."""
    yield LLM("smollm2-135m", max_seqs=32, max_batched_tokens=128, max_model_len=1024, kv_bytes=256 * 2**20)


def only(outputs: list[RequestOutput]) -> RequestOutput:
    [output] = outputs
    assert output.finished
    return output


def test_it_knows_the_capital_of_france(llm: LLM) -> None:
    output = only(llm.chat(QUESTION, GREEDY, use_tqdm=False))
    [choice] = output.outputs
    assert choice.text == "The capital of France is Paris."
    assert (choice.finish_reason, choice.stop_reason) == ("stop", None)
    assert choice.token_ids[-1] in llm.checkpoint.generation.eos_token_ids
    assert output.prompt_token_ids[0] == 1


def test_the_default_kernels_give_the_64_greedy_tokens_of_transformers(llm: LLM) -> None:
    """Recorded in float32 (tests/golden/make_models.py); served here by whatever `kernels="auto"` chose."""
    records = json.loads((Path(__file__).parent / "golden" / "models" / "real.json").read_text())["smollm2-135m"]
    greedy = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    outputs = llm.generate([record["prompt"] for record in records], greedy, use_tqdm=False)
    for output, record in zip(outputs, records, strict=True):
        assert output.outputs[0].token_ids == record["greedy"]


def test_prompts_of_every_kind_keep_their_order(llm: LLM) -> None:
    text = "The capital of France is"
    ids = llm.tokenizer.encode(text) if llm.tokenizer else []
    outputs = llm.generate([text, ids, {"prompt": text}, {"prompt_token_ids": ids}, "2 + 2 ="], GREEDY, use_tqdm=False)
    assert [o.prompt for o in outputs] == [text, None, text, None, "2 + 2 ="]
    assert all(o.prompt_token_ids == ids for o in outputs[:4])
    assert len({o.outputs[0].text for o in outputs[:4]}) == 1
    assert outputs[0].outputs[0].text.startswith(" Paris")
    assert only(llm.generate(ids, GREEDY, use_tqdm=False)).outputs == outputs[1].outputs


def test_each_prompt_can_have_parameters_of_its_own(llm: LLM) -> None:
    short, long = (SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (2, 9))
    outputs = llm.generate(["One", "Two"], [short, long], use_tqdm=False)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [2, 9]
    with pytest.raises(RequestError, match="2 prompts and 1 SamplingParams"):
        llm.generate(["One", "Two"], [short])


@pytest.mark.parametrize(
    "prompt",
    [
        5,
        None,
        [[1.5]],
        [[True]],
        [[[1]]],
        {"text": "x"},
        {"prompt": 5},
        {"prompt": None},
        {"prompt_token_ids": "x"},
        {},
    ],
)
def test_what_is_no_prompt_is_refused(llm: LLM, prompt: Any) -> None:
    with pytest.raises(RequestError, match="a prompt is text, a list of token ids, or a dict"):
        llm.generate(prompt, GREEDY, use_tqdm=False)


def test_ids_are_checked_before_anything_runs(llm: LLM) -> None:
    for bad in (-1, 10**6):
        with pytest.raises(RequestError, match=f"token id {bad} is outside"):
            llm.generate([[1], [1, bad]], GREEDY, use_tqdm=False)
    assert not llm.engine.has_work


def test_numpy_ids_are_ids(llm: LLM) -> None:
    ids = np.array([504, 3575, 282])
    one, [also] = only(llm.generate(ids, GREEDY, use_tqdm=False)), llm.generate([ids], GREEDY, use_tqdm=False)
    assert one.prompt_token_ids == also.prompt_token_ids == [504, 3575, 282]
    assert {type(token) for token in one.prompt_token_ids} == {int}


def test_wrong_parameters_and_messages_say_what_is_wanted(llm: LLM) -> None:
    wrong: Any
    for wrong in ({"temperature": 0}, 5, [{"temperature": 0}]):
        with pytest.raises(RequestError, match="params must be SamplingParams"):
            llm.generate("One", wrong, use_tqdm=False)
    for wrong in ("Hello", {"role": "user", "content": "Hello"}):
        with pytest.raises(RequestError, match="messages must be a list"):
            llm.chat(wrong, GREEDY, use_tqdm=False)


def test_seeds_repeat_and_choices_differ(llm: LLM) -> None:
    hot = SamplingParams(temperature=1.2, seed=7, n=3, max_tokens=12)
    first, again = (only(llm.generate("Once upon a time", hot, use_tqdm=False)) for _ in range(2))
    assert [c.token_ids for c in first.outputs] == [c.token_ids for c in again.outputs]
    assert [c.index for c in first.outputs] == [0, 1, 2]
    assert len({tuple(c.token_ids) for c in first.outputs}) == 3


def test_the_same_tokens_alone_and_in_a_batch_of_32(llm: LLM) -> None:
    prompts = [f"Write a line about the number {i}." for i in range(32)]
    hot = [SamplingParams(temperature=0.9, top_p=0.95, seed=i, max_tokens=12) for i in range(32)]
    together = llm.generate(prompts, hot, use_tqdm=False)
    for i in (0, 13, 31):
        alone = only(llm.generate(prompts[i], hot[i], use_tqdm=False))
        assert alone.outputs[0].token_ids == together[i].outputs[0].token_ids


def test_stop_strings_end_the_text_and_free_the_engine(llm: LLM) -> None:
    whole = only(llm.chat(QUESTION, GREEDY, use_tqdm=False)).outputs[0].text
    stop = SamplingParams(temperature=0, max_tokens=16, stop=["of Fr", "xyz"])
    choice = only(llm.chat(QUESTION, stop, use_tqdm=False)).outputs[0]
    assert choice.text == whole[: whole.index("of Fr")]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", "of Fr")
    stats = llm.engine.stats()
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
    kept = SamplingParams(temperature=0, max_tokens=16, stop="of Fr", include_stop_str_in_output=True)
    assert only(llm.chat(QUESTION, kept, use_tqdm=False)).outputs[0].text == whole[: whole.index("of Fr") + 5]


def test_stop_strings_wait_for_min_tokens(llm: LLM) -> None:
    held = SamplingParams(temperature=0, max_tokens=16, stop=" capital", min_tokens=5)
    assert only(llm.chat(QUESTION, held, use_tqdm=False)).outputs[0].text == "The capital of France is Paris."


def test_bad_words_stay_out(llm: LLM) -> None:
    never = SamplingParams(temperature=0, max_tokens=16, bad_words=["Paris"])
    assert "Paris" not in only(llm.chat(QUESTION, never, use_tqdm=False)).outputs[0].text


def test_log_probabilities_have_vllms_shape(llm: LLM) -> None:
    wants = SamplingParams(temperature=0, max_tokens=8, logprobs=2, prompt_logprobs=1)
    output = only(llm.chat(QUESTION, wants, use_tqdm=False))
    choice = output.outputs[0]
    assert choice.logprobs is not None
    assert len(choice.logprobs) == len(choice.token_ids)
    for token, entry in zip(choice.token_ids, choice.logprobs, strict=True):
        assert entry[token].rank == 1, "greedy takes the likeliest"
        assert len(entry) == 2
    assert choice.cumulative_logprob == pytest.approx(
        math.fsum(entry[token].logprob for token, entry in zip(choice.token_ids, choice.logprobs, strict=True))
    )
    assert [e[t].decoded_token for t, e in zip(choice.token_ids, choice.logprobs, strict=True)][:2] == [
        "The",
        " capital",
    ]
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    for token, entry in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True):
        assert entry is not None
        assert token in entry


def test_a_stream_grows_to_the_same_reply_and_can_be_stopped(llm: LLM) -> None:
    seen = [output.outputs[0].text for output in llm.stream_chat(QUESTION, GREEDY)]
    assert seen[-1] == "The capital of France is Paris."
    assert all(later.startswith(sooner) for sooner, later in itertools.pairwise(seen))
    assert len(set(seen)) > 4
    stream = llm.stream_chat(QUESTION, GREEDY)
    next(stream)
    stream.close()
    llm.engine.step()
    assert llm.engine.stats().running == 0
    assert llm.engine.stats().pages_used == 0


def test_a_long_reply_ends_at_the_context(llm: LLM) -> None:
    prompt = [5] * 1020
    output = only(llm.generate(prompt, SamplingParams(temperature=0, max_tokens=None, ignore_eos=True), use_tqdm=False))
    assert len(output.outputs[0].token_ids) == 4
    assert output.outputs[0].finish_reason == "length"
    with pytest.raises(PromptTooLong, match=r"1024 tokens and the context 1024"):
        llm.generate([5] * 1024, GREEDY, use_tqdm=False)
    assert not llm.engine.has_work


def test_a_refused_prompt_takes_the_others_with_it_and_leaves_nothing(llm: LLM) -> None:
    with pytest.raises(RequestError, match="outside the model's vocabulary"):
        llm.generate(["fine", [999_999]], GREEDY, use_tqdm=False)
    assert not llm.engine.has_work
    assert only(llm.generate("fine", GREEDY, use_tqdm=False)).outputs[0].token_ids


def test_wrong_settings_are_refused_before_anything_loads() -> None:
    with pytest.raises(ConfigError, match="max_seqss"):
        LLM("smollm2-135m", max_seqss=3)
    with pytest.raises(ConfigError, match="dtype must be one of auto, float32, bfloat16, float16, got 'float8'"):
        LLM("smollm2-135m", dtype="float8")
    with pytest.raises(ConfigError, match="max_seqs must be at least 1"):
        LLM("smollm2-135m", max_seqs=0)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """A checkpoint in Hugging Face's layout, without a tokenizer."""
    from slipstream.checkpoint import save_checkpoint

    folder = tmp_path_factory.mktemp("bare")
    save_checkpoint(tiny.checkpoint().source, folder, tiny.CONFIG)
    return LLM(folder, max_seqs=2, max_batched_tokens=16, page_size=4, compile_cache="")


def test_a_model_without_a_tokenizer_serves_token_ids(bare: LLM) -> None:
    output = only(bare.generate([3, 4, 5], SamplingParams(temperature=0, max_tokens=6), use_tqdm=False))
    assert output.outputs[0].token_ids == tiny.greedy([3, 4, 5], 6)
    assert output.outputs[0].text == ""
    with pytest.raises(NoTokenizer, match="send token ids"):
        bare.generate("text", GREEDY)
    with pytest.raises(NoTokenizer, match="send token ids"):
        bare.chat(QUESTION, GREEDY)
    with pytest.raises(RequestError, match="no tokenizer: use stop_token_ids"):
        bare.generate([3], SamplingParams(stop="a"))


def test_a_base_model_answers_prompts_and_refuses_conversations(llm: LLM) -> None:
    assert isinstance(llm.tokenizer, Tokenizer)
    base = LLM.__new__(LLM)
    base.__dict__ |= llm.__dict__
    from dataclasses import replace

    from slipstream.text import load_tokenizer

    assert llm.checkpoint.tokenizer is not None
    base.tokenizer = load_tokenizer(replace(llm.checkpoint.tokenizer, chat_templates={}))
    with pytest.raises(NoChatTemplate):
        base.chat(QUESTION, GREEDY)
    assert only(base.generate("The capital of France is", GREEDY, use_tqdm=False)).outputs[0].text.startswith(" Paris")
