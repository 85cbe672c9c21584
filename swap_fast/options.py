"""Parse a command's options by tyro; their help is the docstrings of a dataclass's fields."""

import getpass
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import is_dataclass, replace
from types import NoneType
from typing import Any, TextIO, get_args

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

_types_in_work: list[Any] = []
"""Of which tyro's own rule is asked for, which ours then changes."""


def parse_options(form: Any, arguments: list[str], prog: str, **about: Any) -> Any:
    """Parse `arguments` as `tyro.cli` does; all of the help flows over the terminal's width."""
    with _registry, redirect_stdout(_Flowing(sys.stdout)):
        return tyro.cli(form, args=arguments, prog=prog, **about)


def flow(text: str, indent: str = "") -> str:
    """A text whose lines break between words, not within [...], where the terminal is narrower.

    Arguments:
        indent: of what follows such a break.
    """
    width, lines = shutil.get_terminal_size().columns, text.split("\n")
    for i, line in enumerate(lines):
        shown = re.sub("\033\\[[0-9;]*m", "", line)  # colours have no width
        if len(shown) > width:
            whole = re.sub(r"\[[^][]*\]", lambda option: option[0].replace(" ", "\0"), shown)
            broken = textwrap.fill(
                whole,
                width,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
            lines[i] = broken.replace("\0", " ")
    return "\n".join(lines)


class _Flowing:
    """A stream on which tyro prints what it does not break itself: usage and description."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(flow(text, "  " if "usage:" in text else ""))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def name_the_user() -> None:
    """Give a user id without a name, as a container may have, one: torch names its caches by it."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"user{os.getuid()}"


def _with_flowing_help(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Tyro's own rule for a dataclass, without the line breaks that it keeps in a docstring."""
    if not is_dataclass(info.type) or info.type in _types_in_work:
        return None
    with _rule_of_tyro(info.type):
        spec = ConstructorRegistry.get_struct_spec(info)
    if not isinstance(spec, StructConstructorSpec):
        return None
    return replace(spec, fields=tuple(map(_flowing, spec.fields)))


def _flowing(field: StructFieldSpec) -> StructFieldSpec:
    given: str | Callable[[], str | None] | None = field.helptext

    def text() -> str | None:  # read when help is asked for: a docstring takes long to find
        found = given() if callable(given) else given
        return found and " ".join(found.split())

    return replace(field, helptext=text)


def _without_none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Tyro's own rule for a type or None, without the None before what is expected: INT."""
    if NoneType not in get_args(info.type) or info.type in _types_in_work:
        return None
    with _rule_of_tyro(info.type):
        spec = ConstructorRegistry.get_primitive_spec(info)
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None
    expected = spec.metavar.removeprefix("{None}|").replace("{None,", "{")
    return replace(spec, metavar=re.sub(r"^\{(\[.*\])\}$", r"\1", expected))


@contextmanager
def _rule_of_tyro(of: Any) -> Iterator[None]:
    """Our rules for a type have no say within."""
    _types_in_work.append(of)
    try:
        yield
    finally:
        _types_in_work.pop()


_registry = ConstructorRegistry()
_registry.struct_rule(_with_flowing_help)
_registry.primitive_rule(_without_none)
