"""A name among names, or a line that helps."""

import difflib
from collections.abc import Iterable


def choose(what: str, name: str, names: Iterable[str]) -> str:
    """The name, where it is one of the names.

    Raises:
        ValueError: it is not; says which may have been meant.
    """
    names = list(names)
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(names)}"
    raise ValueError(f"unknown {what} {name!r}; {hint}")
