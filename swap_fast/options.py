"""Parse a command's options by tyro; their help is the docstrings of a dataclass's fields."""

import getpass
import os
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from typing import Any

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

_types_in_work: list[Any] = []


def parse_options(form: Any, arguments: list[str], prog: str, **about: Any) -> Any:
    """Parse `arguments` as `tyro.cli` does; each option's help flows over the terminal's width."""
    with _registry:
        return tyro.cli(form, args=arguments, prog=prog, **about)


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
    _types_in_work.append(info.type)  # so that the call below comes to tyro's own rule
    try:
        spec = ConstructorRegistry.get_struct_spec(info)
    finally:
        _types_in_work.pop()
    if not isinstance(spec, StructConstructorSpec):
        return None
    return replace(spec, fields=tuple(map(_flowing, spec.fields)))


def _flowing(field: StructFieldSpec) -> StructFieldSpec:
    given: str | Callable[[], str | None] | None = field.helptext

    def text() -> str | None:  # read when help is asked for: a docstring takes long to find
        found = given() if callable(given) else given
        return found and " ".join(found.split())

    return replace(field, helptext=text)


_registry = ConstructorRegistry()
_registry.struct_rule(_with_flowing_help)
