"""Counting what devices say to each other in the text of a compiled step."""

from __future__ import annotations

from slipstream.parallel.hlo import collectives

TEXT = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p: f32[4]) -> f32[4] {
  ROOT %rs = f32[4]{0} reduce-scatter(%p), to_apply=%add
}

%body (carry: (s32[], f32[4])) -> (s32[], f32[4]) {
  %ar.1 = f32[4]{0} all-reduce(%x), channel_id=2, to_apply=%add
  %start = (f32[4]{0}, f32[4]{0}) all-gather-start(%y), dimensions={0}
  %done = f32[4]{0} all-gather-done(%start)
  ROOT %tuple = (s32[], f32[4]{0}) tuple(%i, %ar.1)
}

%condition (carry: (s32[], f32[4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%seldom (p: f32[4]) -> f32[4] {
  ROOT %ar.2 = f32[4]{0} all-reduce(%p), to_apply=%add
}

%mostly (p: f32[4]) -> f32[4] {
  ROOT %p = f32[4]{0} parameter(0)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %fusion = f32[4]{0} fusion(%x), kind=kCustom, calls=%fused
  %while = (s32[], f32[4]{0}) while(%init), condition=%condition, body=%body
  %branch = f32[4]{0} conditional(%which, %x, %x), branch_computations={%mostly, %seldom}
  ROOT %name_with_all-reduce = f32[4]{0} add(%x, %branch)
}
"""


def test_once_and_in_loops() -> None:
    once, looped = collectives(TEXT)
    assert once == {"reduce-scatter": 1, "all-reduce": 1}
    assert looped == {"all-reduce": 1, "all-gather": 1}


def test_a_module_of_one_device_has_none() -> None:
    assert collectives("HloModule m\n\nENTRY %main (x: f32[]) -> f32[] {\n  ROOT %x = f32[] parameter(0)\n}\n") == (
        {},
        {},
    )
