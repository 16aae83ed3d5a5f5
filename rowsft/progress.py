"""Progress bars for whatever takes longer than two seconds."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


def bar(title: str) -> Callable[..., Iterable]:
    """A wrapper for an iterable that shows `title` and a bar once two seconds have passed."""

    def wrap(items: Iterable, total: int | None = None) -> Iterable:
        # disable=None: no bar where nobody watches, so that log files stay readable.
        return tqdm(items, desc=title, total=total, delay=2, leave=False, disable=None)

    return wrap


@contextmanager
def steps(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Give a function to call after each of `total` steps; a bar shows them once two seconds have passed."""
    with tqdm(desc=title, total=total, delay=2, leave=False, disable=None) as progress:
        yield lambda: progress.update() and None
