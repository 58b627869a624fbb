"""What `slipstream serve` prints when it is ready: where it is, what it holds, and two ways to try it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from slipstream.api.engine import EngineInfo
from slipstream.api.image_engine import ImageEngineInfo
from slipstream.cli.console import out
from slipstream.cli.sizes import format_bytes
from slipstream.cluster.client import WorkerState

QUESTION = "What is the capital of France?"


class Prompting(Enum):
    """What a model can be asked with: it decides which example is shown."""

    CHAT = "chat"
    TEXT = "text"
    TOKENS = "tokens"
    EMBED = "embed"
    SCORE = "score"
    CLASSIFY = "classify"
    IMAGE = "image"


@dataclass(frozen=True)
class Banner:
    """The facts. `seconds`: from the command to ready. `needs_key`: whether a request must carry an API key.

    `info`: of the model; `beside`: the name and info of an image model that a language model has beside it. `workers`:
    those of the language model.
    """

    version: str
    model: str
    url: str
    info: EngineInfo | ImageEngineInfo
    prompting: Prompting
    needs_key: bool
    seconds: float
    beside: tuple[str, ImageEngineInfo] | None = None
    workers: tuple[WorkerState, ...] = ()

    def show(self) -> None:
        """Print it: with colours on a terminal, plain in a pipe. Nothing is wrapped, so that it can be copied."""
        out().print(
            f"\nSlipstream {self.version} serves {self._served()} at {self.url}", style="bold green", soft_wrap=True
        )
        for fact in self.facts():
            out().print(f"  {fact}", style="dim", soft_wrap=True)
        for title, text in (("In a shell", self.curl()), ("In Python", self.snippet())):
            out().print(f"\n{title}:\n", style="bold", soft_wrap=True)
            # No indent: a program that is pasted must begin at the margin.
            out().print(text, soft_wrap=True)
        out().print()

    def _served(self) -> str:
        return self.model if self.beside is None else f"{self.model} and {self.beside[0]}"

    def facts(self) -> list[str]:
        """What the engines are, a line each."""
        infos = [self.info] if self.beside is None else [self.info, self.beside[1]]
        shapes = sum(info.num_shapes for info in infos)
        compiling = sum(info.compile_seconds for info in infos)
        return [
            *(fact for info in infos for fact in _facts(info)),
            *(_worker(state) for state in self.workers if len(self.workers) > 1),
            f"ready after {self.seconds:.1f} s ({shapes} step shapes, compiled or read from the cache in "
            f"{compiling:.1f} s)",
            f"page {self.url}/   API {self.url}/docs   metrics {self.url}/metrics",
        ]

    def curl(self) -> str:
        """A request that can be pasted into a shell."""
        path, body = _CURL[self.prompting]
        key = ' -H "Authorization: Bearer $SLIPSTREAM_API_KEY"' if self.needs_key else ""
        return f"curl {self.url}{path} -H 'Content-Type: application/json'{key} -d '{body}'"

    def snippet(self) -> str:
        """A program for the `openai` package."""
        key = 'os.environ["SLIPSTREAM_API_KEY"]' if self.needs_key else '"none"'
        head = (["import os", ""] if self.needs_key else []) + [
            "from openai import OpenAI",
            "",
            f'client = OpenAI(base_url="{self.url}/v1", api_key={key})',
        ]
        return "\n".join([*head, *_SNIPPETS[self.prompting].replace("MODEL", self.model).splitlines()])


def _facts(info: EngineInfo | ImageEngineInfo) -> list[str]:
    """Where it runs, and what it holds."""
    each = " each" * (info.num_devices > 1)
    place = f"{info.dtype} on {info.num_devices} x {info.device}; weights {format_bytes(info.weight_bytes)}{each}"
    if isinstance(info, ImageEngineInfo):
        return [
            place,
            f"{info.family}: {info.width}x{info.height} in {info.steps} steps if nothing is asked for, at most "
            f"{info.max_pixels:,} pixels; {info.slots} slots a step",
        ]
    if not info.kv_bytes:
        tokens = f"at most {info.max_model_len:,} tokens, {info.max_batched_tokens:,} tokens a step"
        return [place, f"no KV cache: texts of {tokens}"]
    return [
        place,
        f"KV cache {format_bytes(info.kv_bytes)}{each} ({info.kv_dtype}): {info.num_pages * info.page_size:,} tokens "
        f"in {info.num_pages:,} pages; {info.max_seqs} sequences at a time, each of at most {info.max_model_len:,} "
        "tokens",
    ]


_ROLES = {"both": "", "prefill": "prefill; ", "decode": "decode; "}


def _worker(state: WorkerState) -> str:
    """One worker of several: what it is for, what it holds, and where it computes."""
    info = state.info
    if state.processors is not None:
        threads = state.threads or len(state.processors)
        where = f"processors {ranges(state.processors)}, {threads} thread{'s' * (threads != 1)}"
    else:
        where = f"all processors, {state.threads or 'as many'} thread{'s' * (state.threads != 1)}"
    holds = f"{info.max_seqs} sequences, {info.num_pages * info.page_size:,} tokens of KV cache"
    steps = f"{info.max_batched_tokens:,} tokens a step"
    return f"worker {state.index}: {_ROLES[state.role]}{holds}, {steps}; {where}"


def ranges(numbers: Sequence[int]) -> str:
    """Numbers, in order, with neighbours together: 0-3,8."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] + 1 == number:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


_CURL = {
    Prompting.CHAT: (
        "/v1/chat/completions",
        f'{{"messages":[{{"role":"user","content":"{QUESTION}"}}],"temperature":0}}',
    ),
    Prompting.TEXT: ("/v1/completions", '{"prompt":"The capital of France is","temperature":0}'),
    Prompting.TOKENS: ("/v1/completions", '{"prompt":[1,2,3],"temperature":0}'),
    Prompting.EMBED: ("/v1/embeddings", '{"input":["a text","another"]}'),
    Prompting.SCORE: ("/v1/rerank", f'{{"query":"{QUESTION}","documents":["Paris.","A tortoise."]}}'),
    Prompting.CLASSIFY: ("/v1/classify", '{"input":["a text","another"]}'),
    Prompting.IMAGE: ("/v1/images/generations", '{"prompt":"a red apple","response_format":"url"}'),
}

_SNIPPETS = {
    Prompting.CHAT: f"""\
stream = client.chat.completions.create(
    model="MODEL", messages=[{{"role": "user", "content": "{QUESTION}"}}], stream=True
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)""",
    Prompting.TEXT: """\
reply = client.completions.create(model="MODEL", prompt="The capital of France is", temperature=0)
print(reply.choices[0].text)""",
    Prompting.TOKENS: """\
reply = client.completions.create(model="MODEL", prompt=[1, 2, 3], temperature=0)
print(reply.choices[0].token_ids)""",
    Prompting.EMBED: """\
reply = client.embeddings.create(model="MODEL", input=["a text", "another"])
print(reply.data[0].embedding[:4])""",
    Prompting.SCORE: f"""\
body = {{"model": "MODEL", "query": "{QUESTION}", "documents": ["Paris.", "A tortoise."]}}
print(client.post("/rerank", body=body, cast_to=object))""",
    Prompting.CLASSIFY: """\
body = {"model": "MODEL", "input": ["a text", "another"]}
print(client.post("/classify", body=body, cast_to=object))""",
    Prompting.IMAGE: """\
import base64

reply = client.images.generate(model="MODEL", prompt="a red apple")
open("apple.png", "wb").write(base64.b64decode(reply.data[0].b64_json))""",
}
