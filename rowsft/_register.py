"""The tuner is imported, and so registered with PEFT, right after PEFT is: without importing torch for that.

PEFT knows its methods by an enum and dictionaries of its own, and reads no entry points of other packages. So a saved
adapter loads after `import rowsft; import peft` only if either import does more than it says. Importing PEFT from here
would take 8 CPU seconds, torch's 3 among them, where this package takes 0.05: each `rowsft --help` would wait for them.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder


class _AfterPeft(MetaPathFinder):
    """Finds peft as the other finders do, and imports the tuner once peft has run."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "peft":
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module
            # An attribute of this one loader, which is asked for this one module.
            vars(spec.loader)["exec_module"] = lambda module: (run(module), import_module("rowsft.tuner"))
        return spec


_after_peft = _AfterPeft()


def register_with_peft() -> None:
    """Import the tuner, which registers itself: now if peft is there already, otherwise right after peft."""
    if "peft" in sys.modules:
        import_module("rowsft.tuner")
    elif _after_peft not in sys.meta_path:
        sys.meta_path.insert(0, _after_peft)
