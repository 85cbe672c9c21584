"""Functions of the user's, named on the command line: package.module:function."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swap_fast.choices import choose


def user_function(option: str, named: str) -> Callable[[], Any]:
    """The function of that name, from the working folder or what is installed.

    Raises:
        ValueError: no such module or function, or a module that fails to be imported.
    """
    module_name, colon, name = named.partition(":")
    if not colon or not name or module_name.endswith(".py") or "/" in module_name:
        guess = f"{Path(module_name).stem or 'my_module'}:{name or 'function'}"
        raise ValueError(f"{option}: expected package.module:function, got {named}; try {guess}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything
        raise ValueError(
            f"{option}: expected a module {module_name}, importing it gave "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    functions = [each for each, value in vars(module).items() if callable(value)]
    return getattr(module, choose(f"function of {option}, {module_name}", name, functions))
