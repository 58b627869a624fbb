"""What vLLM makes of a checkpoint. Run by the Python of vLLM's environment: FOLDER, then requests as JSON on stdin.

A request is a prompt of token ids. Prints one line of JSON: of each, the greedy tokens and the natural logarithm of
the probability of each, or an `error`, which is what vLLM said.
"""

from __future__ import annotations

import json
import sys
from typing import Any

NEW = 16
MARK = "vLLM computed: "


def main(folder: str) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    prompts = [{"prompt_token_ids": prompt} for prompt in json.load(sys.stdin)]
    llm = LLM(
        folder,
        dtype="bfloat16",
        skip_tokenizer_init=True,
        max_model_len=128,
        max_num_seqs=4,
        enforce_eager=True,
        disable_log_stats=True,
    )
    asked = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False, logprobs=1)
    replies = [reply.outputs[0] for reply in llm.generate(prompts, asked, use_tqdm=False)]
    return {
        "tokens": [list(reply.token_ids) for reply in replies],
        "logprobs": [
            [found[token].logprob for token, found in zip(reply.token_ids, reply.logprobs, strict=True)]
            for reply in replies
        ],
    }


if __name__ == "__main__":
    print(MARK + json.dumps(main(sys.argv[1])), flush=True)
