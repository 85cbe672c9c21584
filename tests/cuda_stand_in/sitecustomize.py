"""Installs values.py once torch was imported, where STANDIN_VALUES is set."""

import os
import sys

if os.environ.get("STANDIN_VALUES"):
    import importlib.abc
    import importlib.util

    class Finder(importlib.abc.MetaPathFinder):
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

    sys.meta_path.insert(0, Finder())
    if os.environ.get(
        "STANDIN_WITHOUT"
    ):  # modules that shall seem absent, such as a Triton kernel's
        for name in os.environ["STANDIN_WITHOUT"].split(","):
            sys.modules[name] = None
