"""The tuner is imported, and so registered with PEFT, as soon as PEFT is: without importing torch for that."""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder


class _AfterPeft(MetaPathFinder):
    """Finds peft as the other finders would, and imports the tuner once peft has run."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "peft":
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            import_module("rowsft.tuner")

        spec.loader.exec_module = exec_module
        return spec


def register_with_peft() -> None:
    """Import the tuner, which registers itself: now if peft is there already, otherwise right after peft."""
    if "peft" in sys.modules:
        import_module("rowsft.tuner")
    elif not any(isinstance(finder, _AfterPeft) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterPeft())
