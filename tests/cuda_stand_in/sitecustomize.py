"""Where STANDIN_VALUES is set: import values.py as soon as torch was imported."""

import importlib.abc
import importlib.util
import os
import sys


class AfterTorch(importlib.abc.MetaPathFinder):
    """Finds torch once, with values.py after it."""

    def find_spec(self, name, path, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            import values  # noqa: F401

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("STANDIN_VALUES"):
    sys.meta_path.insert(0, AfterTorch())
