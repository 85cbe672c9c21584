"""Unpickle the CIFAR Python files without giving them the power to run anything.

A pickle may name any function and have it called on loading. Here the only names that are known
are those with which numpy rebuilds an array, and the one with which Python 3 writes bytes in the
old protocols.
"""

import _codecs
import io
import pickle
from typing import Any

import numpy as np

# What numpy's own arrays name when they are pickled: the same function in every numpy, while the
# module that it lives in was renamed.
_RECONSTRUCT = np.empty(0).__reduce__()[0]

_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _codecs.encode,
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The object of that name, if it is one that an array needs."""
        allowed = _ALLOWED.get((module_name, global_name))
        if allowed is None:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")
        return allowed


def load_arrays(content: bytes, where: str) -> dict[str, Any]:
    """The dictionary in a pickle of numpy arrays, lists, numbers and strings.

    Arguments:
        content: the pickle, of Python 2 or 3.
        where: the file's name, for the error.

    Returns:
        The dictionary, with keys as str whichever Python wrote it.

    Raises ValueError, in one line, where the pickle names anything else, is damaged or is not a
    dictionary.
    """
    try:
        loaded = _RestrictedUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything, as pickle's manual says
        raise ValueError(
            f"{where}: expected a pickle of numpy arrays and lists only, "
            f"got one that cannot be loaded: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{where}: expected a pickled dictionary, got {type(loaded).__name__}")
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): value
        for key, value in loaded.items()
    }
