"""Chat templates are strangers' programs: what they must not reach, and what they must not use up."""

from __future__ import annotations

import tracemalloc

import pytest

from slipstream.errors import RequestError
from slipstream.text import sandbox
from slipstream.text.chat import ChatTemplates

LONG = "x" * 1000
# Doubles `ns.s` until something stops it.
DOUBLING = "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = @ %}{% endfor %}{{ ns.s }}"


def render(source: str, content: str = "hi") -> str:
    return ChatTemplates({"default": source}, {}).render([{"role": "user", "content": content}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__wrapped__ }}",
        "{{ namespace.__init__ }}{{ namespace.__init__.__globals__ }}",
        "{{ namespace(__class__='x') }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 'x' %}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ dict.mro() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ (range(3) | map('string')).gi_frame }}",
        "{% include 'secrets' %}",
        "{% import 'os' as os %}",
    ],
)
def test_nothing_beyond_the_messages_is_reached(source: str) -> None:
    try:
        text = render(source)
    except RequestError:
        return
    assert "object at" not in text and "class" not in text and "function" not in text


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10**12 }}",
        "{{ [messages] * 10**9 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{% set ns = namespace(n=3) %}{% for i in range(64) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
        DOUBLING.replace("@", "ns.s ~ ns.s"),
        DOUBLING.replace("@", "ns.s + ns.s"),
        DOUBLING.replace("@", "ns.s * 2"),
        DOUBLING.replace("@", "[ns.s, ns.s]"),
        DOUBLING.replace("@", "[ns.s, ns.s] | tojson"),
        DOUBLING.replace("@", "[ns.s, ns.s] | string"),
        DOUBLING.replace("@", "[ns.s, ns.s] | join"),
        DOUBLING.replace("@", "''.join([ns.s, ns.s])"),
        DOUBLING.replace("@", "(ns.s ~ 'x').replace('x', ns.s)"),
        DOUBLING.replace("@", "(ns.s ~ 'x') | replace('x', ns.s)"),
        DOUBLING.replace("@", "'%s%s' % (ns.s, ns.s)"),
        DOUBLING.replace("@", "'%s%s' | format(ns.s, ns.s)"),
        DOUBLING.replace("@", "'{0}{0}'.format(ns.s)"),
        DOUBLING.replace("@", "('\\n' ~ ns.s) | indent(ns.s)"),
        "{% set ns = namespace(s=['x']) %}{% for i in range(64) %}{% set ns.s = [ns.s, ns.s] | sum(start=[]) %}"
        "{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}"
        "{% set block %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = block %}{% endfor %}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:999999999}'.format('x') }}",
        "{{ '{:{}}'.format('x', 999999999) }}",
        "{{ '{:{w}}'.format_map({'w': 999999999}) }}",
        "{{ 'x'.ljust(999999999) }}",
        "{{ 'x'.center(999999999) }}",
        "{{ '1'.zfill(999999999) }}",
        "{{ '\t'.expandtabs(999999999) }}",
        "{{ 'a'.translate({97: 'x' * 1000}) }}",
        "{{ (1).to_bytes(999999999, 'big') }}",
        "{{ 'x' | center(999999999) }}",
        "{{ messages | tojson(indent=999999999) }}",
        "{{ lipsum(n=100000) }}",
        "{{ range(10**12) | list }}",
        "{{ strftime_now('%999999999d') }}",
        "{% for a in range(100000) %}{{ '" + LONG + "' }}{% endfor %}",
        "{% for a in range(100000) %}" + LONG + "{% endfor %}",
        "{% macro m() %}{% for a in range(100000) %}" + LONG + "{% endfor %}{% endmacro %}{% set x = m() %}",
    ],
)
def test_memory_is_bounded(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_VALUE", 2**20)
    monkeypatch.setattr(sandbox, "MAX_WRITTEN", 4 * 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(RequestError):
            render(source)
        assert tracemalloc.get_traced_memory()[1] < 48 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{% for b in range(100000) if false %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(64) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for a in [range(100000)] * 100000 recursive %}{{ loop(a) if a is iterable }}{% endfor %}",
        "{% for a in range(100000) %}{% set x = range(100000) | sum %}{% endfor %}",
    ],
)
def test_time_is_bounded(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_TURNS", 50_000)
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.5)
    with pytest.raises(RequestError):
        render(source)


def test_a_long_conversation_is_no_attack() -> None:
    content = "word " * 100_000
    source = "{% for m in messages %}{{ '<' ~ m.role + '>\n' + m.content | trim ~ '\n' }}{% endfor %}"
    messages = [{"role": "user", "content": content}] * 10
    text = ChatTemplates({"default": source}, {}).render(messages)
    assert len(text) == 10 * (len(content) - 1 + len("<user>\n\n"))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ '%s is %d' % ('x', 3) }}", "x is 3"),
        ("{{ '{} is {:>3}'.format('x', 3) }}", "x is   3"),
        ("{{ '%s-%s' | format('a', 'b') }}", "a-b"),
        ("{{ ['a', 'b'] | join(', ') }}{{ ', '.join(['c', 'd']) }}", "a, bc, d"),
        ("{{ [{'n': {'v': 1}}, {'n': {'v': 2}}] | join('+', attribute='n.v') }}", "1+2"),
        ("{{ [{'n': 1}, {'n': 2}] | sum(attribute='n') }}{{ [1, 2] | sum(start=4) }}", "37"),
        (
            "{{ 'aXbX' | replace('X', '-') }}{{ 'aXbX' | replace('X', '-', 1) }}{{ 'aXb'.replace('X', '') }}",
            "a-b-a-bXab",
        ),
        ("{{ 'a\nb' | indent(2) }}|{{ 'a\nb' | indent('> ', first=true) }}", "a\n  b|> a\n> b"),
        ("{{ {'a': [1, none, true]} | tojson(indent=1) }}", '{\n "a": [\n  1,\n  null,\n  true\n ]\n}'),
        ("{{ 'ab' * 2 }}{{ 2 * 3 }}{{ 2 ** 10 }}{{ 7 % 4 }}{{ [1] + [2] }}{{ 1 + 2.5 }}", "abab610243[1, 2]3.5"),
        ("{{ dict(a=1) }}{{ dict.fromkeys(['x']) }}", "{'a': 1}{'x': None}"),
        (
            "{% for x in 'abc' if x != 'b' %}{{ loop.index }}/{{ loop.length }}{{ x }}{{ loop.last }} {% endfor %}",
            "1/2aFalse 2/2cTrue ",
        ),
        ("{% for x in [[1, [2]], [3]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}", "123"),
        ("{% call(x) m() %}{{ x }}{% endcall %}{% macro m() %}{{ caller(1) }}{% endmacro %}", None),
        ("{{ none }}{{ true }}{{ missing }}{{ missing is defined }}", "NoneTrueFalse"),
        ("{% generation %}a{{ 1 }}{% endgeneration %}", "a1"),
    ],
)
def test_what_templates_may_do_works_as_ever(source: str, text: str | None) -> None:
    if text is None:
        with pytest.raises(RequestError, match="'m' is undefined"):
            render(source)
    else:
        assert render(source) == text
