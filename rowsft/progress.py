"""Progress bars for whatever takes longer than two seconds."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

_PATIENCE_SECONDS = 2


def bar(title: str) -> Callable[..., Iterable]:
    """A wrapper for an iterable that shows `title` and a bar once two seconds have passed."""

    def wrap(items: Iterable, total: int | None = None) -> Iterable:
        from tqdm import tqdm

        # disable=None: no bar where nobody watches, so that log files stay readable.
        return tqdm(items, desc=title, total=total, delay=_PATIENCE_SECONDS, leave=False, disable=None)

    return wrap


def each(title: str, items: Sequence) -> Iterator:
    """The items one by one; shows how far it is as `steps` does."""
    with steps(title, len(items)) as step:
        for item in items:
            yield item
            step()


@contextmanager
def steps(title: str, total: int) -> Iterator[Callable[[], object]]:
    """Give a function to call after each of `total` steps.

    From two seconds on a bar shows them; where nobody watches, one line says how far it is.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=title, total=total, delay=_PATIENCE_SECONDS, leave=False) as progress:
            yield progress.update
        return
    begun, taken, printed = monotonic(), 0, False

    def step() -> None:
        nonlocal taken, printed
        taken += 1
        if not printed and monotonic() - begun > _PATIENCE_SECONDS:
            printed = True
            print(f"{title}: {taken:,} of {total:,}", file=sys.stderr, flush=True)

    yield step
