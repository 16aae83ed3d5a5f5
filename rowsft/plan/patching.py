"""Other functions in the place of a library's, for as long as a plan needs them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_INHERITED = object()


@contextmanager
def patched(owner: object, **functions: Callable) -> Iterator[None]:
    """Inside the block `owner`, a module or a class, has `functions` in the place of its own of those names."""
    before = {name: vars(owner).get(name, _INHERITED) for name in functions}
    for name, function in functions.items():
        setattr(owner, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            if function is _INHERITED:
                delattr(owner, name)
            else:
                setattr(owner, name, function)
