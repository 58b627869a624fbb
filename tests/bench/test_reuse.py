"""What saving passes costs: a line for each way, whose numbers are those of the pictures."""

from __future__ import annotations

from rich.console import Console

from slipstream.bench.options import ReuseOptions
from slipstream.bench.reuse import measured, table
from slipstream.diffusion.reuse import Reuse
from tests.diffusion.fakes import EMBEDDED, engine


def test_a_line_for_each_way() -> None:
    one = engine(EMBEDDED, batches=(1, 2), first_block=0.0)
    ways = {"every second": Reuse(every=2), "never": 0.0, "some": 0.3, "most": 0.6}
    lines = measured(one, ways, ReuseOptions(prompt=("a cat", "a dog"), size="16x16", steps=12))
    half, none, some, most = lines
    assert [line.name for line in lines] == list(ways)
    assert {line.quality.full_passes for line in lines} == {24}
    assert (none.saved, none.quality.worst) == (0, 0) and none.quality.psnr == float("inf")
    assert 0 < some.saved < most.saved < 1 and some.quality.psnr > most.quality.psnr > 5
    assert 0 < half.saved < 0.5
    console = Console(width=100, record=True, file=None, force_terminal=False)
    console.print(table(lines))
    shown = console.export_text()
    assert "24 of 24" in shown and "every second" in shown
