"""What vLLM makes of checkpoints. Run by the Python of vLLM's environment: FOLDER..., and prompts as JSON on stdin.

A prompt is a list of token ids. Prints a line of JSON for each folder, after MARK: the `folder`, and of each prompt the
greedy `tokens` and `logprobs`, the natural logarithms of their probabilities; or an `error`, which is what vLLM said.
"""

from __future__ import annotations

import json
import sys
from typing import Any

NEW = 16
MARK = "vLLM: "


def computed(folder: str, prompts: list[list[int]]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    try:
        llm = LLM(
            folder,
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=128,
            max_num_seqs=4,
            enforce_eager=True,
            disable_log_stats=True,
        )
    except ValueError as error:
        return {"error": str(error)}
    asked = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False, logprobs=1)
    given = [{"prompt_token_ids": prompt} for prompt in prompts]
    replies = [reply.outputs[0] for reply in llm.generate(given, asked, use_tqdm=False)]
    return {
        "tokens": [list(reply.token_ids) for reply in replies],
        "logprobs": [
            [found[token].logprob for token, found in zip(reply.token_ids, reply.logprobs, strict=True)]
            for reply in replies
        ],
    }


if __name__ == "__main__":
    prompts = json.load(sys.stdin)
    for folder in sys.argv[1:]:
        print(MARK + json.dumps({"folder": folder, **computed(folder, prompts)}), flush=True)
