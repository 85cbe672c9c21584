"""Refuse what a setting or an argument cannot be, in one line: its name, expected, got."""

import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import cache, wraps
from inspect import isfunction, signature
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")


def require(condition: bool, name: str, expected: str, got: object) -> None:
    """Refuse a value with one line: its name, what was expected, what it is."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")


def one_line(error: object, most: int = 500) -> str:
    """What an error says, in one line of at most that many characters; else its class."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."


def whole(name: str, value: object) -> None:
    """Refuse a value that is not a whole number of 1 or more."""
    is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    require(is_whole, name, "a whole number >= 1", value)


def check(config: object, name: str, fits: bool, expected: str) -> None:
    """Refuse the value of a field, or of a field of a field ("phase2.stop")."""
    require(fits, name, expected, attrgetter(name)(config))


def typed_fields(config: Any) -> None:
    """Refuse a dataclass with a field of another type than its own.

    Numbers of numpy's become Python's, which JSON has too, and lists tuples.

    Raises:
        ValueError: names the field.
    """
    hints = _hints(config.__class__)
    for name in (field.name for field in fields(config)):
        value = typed(name, getattr(config, name), hints[name])
        object.__setattr__(config, name, value)  # the dataclass is frozen


def typed_arguments(*own: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function that refuses arguments of another type than their own, as `typed_fields` does.

    Arguments:
        own: names of those that the function checks by itself.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        form = signature(function)

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = form.bind(*args, **kwargs)
            except TypeError:  # in Python's words, which name the function
                return function(*args, **kwargs)
            hints = _hints(function)
            for name, value in given.arguments.items():
                if name not in own:
                    given.arguments[name] = typed(name, value, hints[name])
            return function(*given.args, **given.kwargs)

        return checked

    return decorate


@cache
def _hints(owner: Any) -> dict[str, Any]:
    return get_type_hints(owner)


class _OtherTypeError(Exception):
    """With the value, or the one in it, that is of another type."""


def typed(name: str, value: Any, kind: Any) -> Any:
    """The value as `kind`, an annotation, has it; else a ValueError that names it."""
    try:
        return _cast(value, kind)
    except _OtherTypeError as error:
        (odd,) = error.args
        is_plain = isinstance(odd, str | numbers.Number | None)
        got = repr(odd) if is_plain else f"a {type(odd).__name__}"
        if isfunction(odd):
            got = f"{odd.__name__}{signature(odd)}"
        inside = "" if odd is value else " in it"
        raise ValueError(f"{name}: expected {_words(kind)}, got {got}{inside}") from None


def _cast(value: Any, kind: Any) -> Any:
    """The value, where it is of that type.

    Raises:
        _OtherTypeError: it is not.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or getattr(kind, "_is_protocol", False):
        return value
    if isinstance(value, bool) and kind in (int, float):
        raise _OtherTypeError(value)
    if kind is int and isinstance(value, numbers.Integral):
        return int(value)
    if kind is float and isinstance(value, numbers.Real):
        return value if isinstance(value, int) else float(value)
    if origin in (Union, UnionType):
        for each in inner:
            with suppress(_OtherTypeError):
                return _cast(value, each)
    elif origin is Literal and isinstance(value, str) and value in inner:
        return value
    elif origin is tuple and isinstance(value, (tuple, list)):
        kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
        if len(kinds) == len(value):
            return tuple(map(_cast, value, kinds))
    elif origin is Sequence and isinstance(value, Iterable):
        # A text, a mapping and a net, which is called, are one thing and no list of them.
        if not isinstance(value, (str, bytes, Mapping)) and not callable(value):
            values = value.tolist() if hasattr(value, "tolist") else value
            return [_cast(each, inner[0]) for each in values]
    elif origin is Callable:
        if callable(value) and (not isinstance(inner[0], list) or takes(value, len(inner[0]))):
            return value
    elif origin not in (Literal, tuple, Sequence) and isinstance(value, origin or kind):
        return value
    raise _OtherTypeError(value)


def takes(function: Any, count: int) -> bool:
    """Whether a function can be called with that many arguments, as far as can be known."""
    try:
        form = signature(function)
    except (TypeError, ValueError):  # of one that is written in C
        return True
    with suppress(TypeError):
        form.bind(*range(count))
        return True
    return False


_WORDS: dict[Any, str] = {
    **{int: "a whole number", float: "a number", bool: "True or False", str: "a text"},
    **{NoneType: "None", Callable: "a function", Sequence: "a list", Iterable: "an iterable"},
}


def _words(kind: Any) -> str:
    """A type for a reader."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _either(inner)
    if origin in (Union, UnionType):
        return _either([_words(each) for each in inner])
    if origin is Callable and isinstance(inner[0], list):
        count = len(inner[0])
        return f"a function of {count or 'no'} argument{'' if count == 1 else 's'}"
    if origin in (Sequence, tuple) and inner:
        return f"a list, each {_words(inner[0])}"
    return _WORDS.get(origin or kind) or f"a {(origin or kind).__name__}"


def _either(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last
