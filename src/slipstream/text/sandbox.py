"""Where chat templates run: jinja2's sandbox, set up as transformers does, with bounds on what a template may consume.

Templates come with checkpoints, so they are strangers' programs. The sandbox keeps them from Python's internals; the
bounds here keep them from filling the memory or running for ever. Whatever makes a long value out of short ones is
measured before it is done, everything written counts, and each turn of a loop or macro is a tick of one budget.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from jinja2 import Environment, Template, nodes, pass_context, pass_environment, pass_eval_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_VALUE = 16 * 2**20
MAX_WRITTEN = 64 * 2**20
MAX_TURNS = 1_000_000
MAX_SECONDS = 10.0
MAX_BITS = 4096
MAX_WIDTH = 1000
BUDGET = "_budget"

# Filters and globals that make text out of a number, or look outside, and that no chat template needs.
_REMOVED_FILTERS = ("batch", "center", "filesizeformat", "pprint", "slice", "truncate", "urlize", "wordwrap", "xmlattr")
_REMOVED_GLOBALS = ("cycler", "joiner", "lipsum")
_REMOVED_METHODS = frozenset({"center", "encode", "expandtabs", "ljust", "rjust", "to_bytes", "translate", "zfill"})
_WIDE = re.compile(r"\d{4,}|%[^a-zA-Z%]*\*|\{[^{}]*:[^{}]*\{")


class Budget:
    """What one rendering may still use: turns of loops and macros, characters written, seconds."""

    def __init__(self) -> None:
        self.turns = MAX_TURNS
        self.characters = MAX_WRITTEN
        self.deadline = time.monotonic() + MAX_SECONDS

    def tick(self) -> None:
        """Count one turn. Raises SecurityError when none is left, or the time is up."""
        self.turns -= 1
        if self.turns < 0 or time.monotonic() > self.deadline:
            raise SecurityError(f"the chat template loops more than {MAX_TURNS} times or {MAX_SECONDS:.0f} seconds")

    def write(self, size: int) -> None:
        """Count characters written, also those that a macro or block captures."""
        self.characters -= size
        if self.characters < 0:
            raise SecurityError(f"the chat template writes more than {MAX_WRITTEN} characters")


def size_of(value: Any) -> int:
    """About the characters that `value` takes when written. Raises SecurityError over MAX_VALUE."""
    total = 0
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            total += len(one)
        elif isinstance(one, Mapping):
            total += 8 * len(one)
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, set, frozenset)):
            total += 8 * len(one)
            waiting += one
        else:
            total += 8
        if total > MAX_VALUE:
            raise SecurityError(f"the chat template makes a value of more than {MAX_VALUE} characters")
    return total


def _bounded(size: int) -> None:
    if size > MAX_VALUE:
        raise SecurityError(f"the chat template makes a value of more than {MAX_VALUE} characters")


def _times(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MAX_BITS:
            raise SecurityError(f"the chat template makes a number of more than {MAX_BITS} bits")
        return
    for one, other in ((left, right), (right, left)):
        if isinstance(other, int):
            _bounded(size_of(one) * max(other, 1))


def _power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MAX_BITS:
        raise SecurityError(f"the chat template makes a number of more than {MAX_BITS} bits")


def _plus(left: Any, right: Any) -> None:
    _bounded(size_of(left) + size_of(right))


def _percent(left: Any, right: Any) -> None:
    if isinstance(left, str):
        _formatted(left, right)


def _formatted(text: str, *args: Any, **kwargs: Any) -> None:
    """A format string may name each argument once for each of its fields, and no large width."""
    if _WIDE.search(text.replace("{{", "")):
        raise SecurityError("the chat template formats with a width of its own making or one that is too large")
    _bounded(len(text) + (text.count("%") + text.count("{")) * (size_of(args) + size_of(kwargs)))


def _replaced(text: str, old: Any, new: Any, *_: Any, **__: Any) -> None:
    _bounded(len(text) + (text.count(str(old)) + 1) * size_of(new))


def _joined(separator: str, values: Any) -> None:
    if isinstance(values, (list, tuple)):
        _bounded(size_of(values) + len(separator) * len(values))


_OPERATORS: Mapping[str, Callable[[Any, Any], None]] = {"*": _times, "**": _power, "%": _percent, "+": _plus}
_METHODS: Mapping[str, Callable[..., None]] = {
    "format": _formatted,
    "format_map": _formatted,
    "join": _joined,
    "replace": _replaced,
}


@pass_eval_context
def _checked_join(eval_ctx: EvalContext, value: Any, d: str = "", attribute: str | int | None = None) -> Any:
    values = list(value)
    _joined(str(d), values)
    return FILTERS["join"](eval_ctx, values, d, attribute)


@pass_eval_context
def _checked_replace(eval_ctx: EvalContext, value: Any, old: str, new: str, count: int | None = None) -> Any:
    _replaced(str(value), old, new)
    return FILTERS["replace"](eval_ctx, value, old, new, count)


def _checked_format(value: Any, *args: Any, **kwargs: Any) -> Any:
    _formatted(str(value), *args, **kwargs)
    return FILTERS["format"](value, *args, **kwargs)


def _checked_indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text, lead = str(value), width if isinstance(width, str) else " " * min(int(width), MAX_WIDTH)
    _bounded(len(text) + (text.count("\n") + 1) * len(lead))
    return str(FILTERS["indent"](text, lead, first, blank))


def _checked_string(value: Any) -> str:
    size_of(value)
    return str(value)


@pass_environment
def _checked_sum(environment: Environment, value: Any, attribute: str | int | None = None, start: Any = 0) -> Any:
    values = list(value)
    size_of(values)
    return FILTERS["sum"](environment, values, attribute, start)


def _concat(values: list[Any]) -> str:
    """What `a ~ b` makes."""
    size_of(values)
    return "".join(map(str, values))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: jinja's own filter would escape HTML's characters."""
    size_of(value)
    if (indent if isinstance(indent, int) else len(indent or "")) > 16:
        raise SecurityError("the chat template indents JSON by more than 16")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@pass_context
def _tick(context: Context, value: Any) -> bool:
    # Render-time values lie in `parent`, where no `set` in the template can reach them.
    context.parent[BUDGET].tick()
    return True


@pass_context
def _text(context: Context, value: str) -> str:
    return value


@pass_context
def _written(context: Context, value: Any) -> Any:
    budget = context.parent.get(BUDGET)
    if budget is not None:
        budget.write(size_of(value))
    return value


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    _formatted(pattern)
    return datetime.now().strftime(pattern)


class _TemplateDict:
    """`dict(...)` and `dict.fromkeys(...)` without the type's other attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As Python's."""
        return dict.fromkeys(*args)


class TemplateNamespace(Namespace):
    """jinja's `namespace` without underscored names, which could reach Python's own attributes."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `self` can be a name in the namespace
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _plain_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _plain_name(name)
        super().__setitem__(name, value)


def _plain_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template may not use the name {name!r} in a namespace")


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The statements between the tags."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Bounds(NodeTransformer):
    """Puts ticks into loops and macros, sends `~` through a filter that measures, and makes literal text count.

    Literal text becomes an expression, so that `_written` sees it: a loop may capture it a million times.
    """

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.Filter(nodes.Const(node.data), "_text", [], [], None, None).set_lineno(node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_ticking(node)).set_lineno(node.lineno))
        if node.test is not None:  # a loop that skips everything never reaches its body
            node.test = nodes.And(_ticking(node), node.test).set_lineno(node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_ticking(node)).set_lineno(node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "_concat", [], [], None, None).set_lineno(node.lineno)


def _ticking(node: nodes.Node) -> nodes.Expr:
    tick = nodes.Filter(nodes.Const(True), "_tick", [], [], None, None)
    tick.set_lineno(node.lineno)
    return tick


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with transformers' settings, filters and globals, and the bounds of this module."""

    intercepted_binops = frozenset(_OPERATORS)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols], finalize=_written
        )
        for name in _REMOVED_FILTERS:
            self.filters.pop(name)
        for name in _REMOVED_GLOBALS:
            self.globals.pop(name)
        self.filters |= _FILTERS
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _TemplateDict(),
            "namespace": TemplateNamespace,
        }

    def load(self, source: str) -> Template:
        """Compile a template with the bounds put in. Raises jinja2's TemplateSyntaxError."""
        tree: nodes.Template = _Bounds().visit(self.parse(source))
        return Template.from_code(self, self.compile(tree), self.make_globals(None))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operator's result, once its size is known to be in bounds."""
        _OPERATORS[operator](left, right)
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """As the sandbox has it, without the string methods that make text from a number."""
        return attr not in _REMOVED_METHODS and super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function or method, once the size of what it makes is known to be in bounds."""
        method = getattr(__obj, "__wrapped__", __obj)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            check = _METHODS.get(method.__name__)
            if check is not None:
                check(owner, *args, **kwargs)
        return super().call(__context, __obj, *args, **kwargs)


_FILTERS: Mapping[str, Callable[..., Any]] = {
    "format": _checked_format,
    "indent": _checked_indent,
    "join": _checked_join,
    "replace": _checked_replace,
    "string": _checked_string,
    "sum": _checked_sum,
    "tojson": _tojson,
    "_concat": _concat,
    "_text": _text,
    "_tick": _tick,
}
