"""Record what transformers renders from the chat templates beside this file: tests/golden/chat/rendered.json.

Run with `python -m tests.golden.make_chat` where transformers is at hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from transformers.utils.chat_template_utils import render_jinja_template

FOLDER = Path(__file__).parent / "chat"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

PLAIN = [{"role": "user", "content": "What is the capital of France?"}]
SYSTEM = [{"role": "system", "content": "  Be brief. \n"}, *PLAIN]
TURNS = [
    *SYSTEM,
    {"role": "assistant", "content": " Paris.\n"},
    {"role": "user", "content": 'And of "Japan" & <Peru>? 日本 🙂'},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather's <now> & later — à Paris",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
    {"type": "function", "function": {"name": "time", "parameters": {}}},
]
CALLS = [
    *SYSTEM,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": '{"sky": "clear"}'},
    {"role": "assistant", "content": "It is clear."},
]
PARTS = [{"role": "user", "content": [{"type": "text", "text": " one "}, {"type": "text", "text": "two"}]}]
THOUGHTS = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "<think>hm</think>\n\n2", "reasoning_content": "\nadd them\n"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4", "reasoning": "\nsame\n"},
]
DOCUMENTS = [{"title": "A", "text": "first"}, {"title": "B", "text": "second"}]

CASES: list[tuple[str, dict[str, Any]]] = [
    ("smollm2", {"messages": PLAIN, "add_generation_prompt": True}),
    ("smollm2", {"messages": TURNS, "add_generation_prompt": True}),
    ("smollm2", {"messages": TURNS}),
    ("smollm2", {"messages": [*PLAIN, {"role": "assistant", "content": "It is "}], "continue_final_message": True}),
    ("tools", {"messages": TURNS, "add_generation_prompt": True}),
    ("tools", {"messages": PLAIN, "tools": TOOLS, "add_generation_prompt": True}),
    ("tools", {"messages": CALLS, "tools": TOOLS}),
    ("tools", {"messages": CALLS, "continue_final_message": True}),
    ("tools", {"messages": PLAIN, "add_generation_prompt": True, "enable_thinking": False}),
    ("alternating", {"messages": PLAIN}),
    ("alternating", {"messages": TURNS}),
    ("alternating", {"messages": TURNS[:3], "continue_final_message": True}),
    ("parts", {"messages": TURNS, "add_generation_prompt": True}),
    ("parts", {"messages": PARTS, "add_generation_prompt": True}),
    ("parts", {"messages": PLAIN, "documents": DOCUMENTS, "add_generation_prompt": True}),
    ("reasoning", {"messages": THOUGHTS}),
    ("reasoning", {"messages": THOUGHTS[:3], "add_generation_prompt": True}),
]


def main() -> None:
    """Write the file: a template's name, what it was given, and what came out, a line each."""
    lines = []
    for template, given in CASES:
        source = (FOLDER / f"{template}.jinja").read_text(encoding="utf-8")
        copy = json.loads(json.dumps(given))
        messages = copy.pop("messages")
        (text,), _ = render_jinja_template([messages], chat_template=source, **copy, **SPECIAL)
        lines.append(json.dumps({"template": template, "given": given, "text": text}))
    body = ",\n".join(lines)
    (FOLDER / "rendered.json").write_text(
        f'{{"made_by": "transformers {transformers.__version__}", "cases": [\n{body}\n]}}\n'
    )


if __name__ == "__main__":
    main()
