"""Progress bars for whatever takes longer than two seconds."""

from collections.abc import Callable, Iterable

from tqdm import tqdm


def bar(title: str) -> Callable[..., Iterable]:
    """A wrapper for an iterable that shows `title` and a bar once two seconds have passed."""

    def wrap(items: Iterable, total: int | None = None) -> Iterable:
        # disable=None: no bar where nobody watches, so that log files stay readable.
        return tqdm(items, desc=title, total=total, delay=2, leave=False, disable=None)

    return wrap
