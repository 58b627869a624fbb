"""House rules that no other tool checks: file length, file names, notes to self, module headers."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_LINES = 450
VAGUE_NAMES = {"utils", "util", "common", "base", "misc", "helpers"}
NOTES = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
FUTURE = "from __future__ import annotations"


def main() -> int:
    """Print each broken rule as path:line: message; 1 if there is one."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src", "tests", "scripts"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    paths = [Path(line) for line in listed.stdout.splitlines() if Path(line).is_file()]
    broken = [problem for path in paths if path.suffix == ".py" for problem in problems(path, path.read_text())]
    print("\n".join(broken) or f"{len(paths)} files keep the house rules")
    return 1 if broken else 0


def problems(path: Path, text: str) -> Iterator[str]:
    """The rules that the Python file `path` with the content `text` breaks."""
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        yield f"{path}:{MAX_LINES}: {len(lines)} lines, at most {MAX_LINES}: split it along a concept"
    if path.stem in VAGUE_NAMES:
        yield f"{path}:1: a name that says nothing: name the file after what is in it"
    for number, line in enumerate(lines, 1):
        if NOTES.search(line):
            yield f"{path}:{number}: a note to self: do it, or write an issue"
    has_code = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(text).body)
    if has_code and FUTURE not in lines:
        yield f"{path}:1: lacks `{FUTURE}`"


if __name__ == "__main__":
    sys.exit(main())
