"""A participant that computes nothing: run as a script, it answers with times that its settings ask for.

`speed`: tokens a second of each stream, after a first token at `first` seconds. `log`: a file that gets a line for each
command. `fault`: what goes wrong, `when` so many streams are asked for (0: while loading).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    settings = json.loads(sys.argv[1])

    def say(answer: dict[str, object]) -> None:
        print(json.dumps(answer), flush=True)

    def fault(streams: int) -> bool:
        kind = settings.get("fault") if settings.get("when", 0) == streams else None
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "exits":
            print("out of luck", file=sys.stderr, flush=True)
            sys.exit(3)
        if kind == "hangs":
            time.sleep(60)
        if kind == "error":
            say({"error": "Trouble: as asked"})
        return kind == "error"

    if fault(0):
        return
    say({"ready": {"versions": {"fake": settings["name"]}}})
    for line in sys.stdin:
        command = json.loads(line)
        prompts, tokens = command["prompts"], command["tokens"]
        with Path(settings["log"]).open("a") as log:
            log.write(f"{settings['name']} {len(prompts)} {len(prompts[0])} {tokens} {prompts[0][0]}\n")
        if fault(len(prompts)):
            continue
        each = [settings["first"] + number / settings["speed"] for number in range(tokens)]
        say({"times": [each for _ in prompts]})


if __name__ == "__main__":
    main()
