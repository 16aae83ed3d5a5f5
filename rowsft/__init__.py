"""Row-based sparse fine-tuning as a PEFT method, with the suite that compares it.

Importing this package loads neither torch nor peft. It makes sure that peft knows the method ``ROW_SFT`` by the time
peft itself is imported, so saved adapters load through peft and transformers with nothing else to call.
"""

from importlib import import_module

from rowsft._register import register_with_peft

__version__ = "0.1.0"

_HOMES = {
    "RowSFTConfig": "rowsft.tuner",
    "RowSFTModel": "rowsft.tuner",
    "attach": "rowsft.tuner.attach",
    "load_runs": "rowsft.report.frame",
    "score": "rowsft.tuner.attach",
}

__all__ = ["RowSFTConfig", "RowSFTModel", "__version__", "attach", "load_runs", "score"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


register_with_peft()
