"""Progress shows once something takes long, and only then."""

import itertools

from rowsft import progress


def test_nothing_is_shown_of_what_is_quick(capfd):
    assert list(progress.each("reading", [1, 2, 3])) == [1, 2, 3]
    assert capfd.readouterr() == ("", "")


def test_one_line_says_how_far_it_is_where_nobody_watches(capfd, monkeypatch):
    seconds = itertools.count()
    monkeypatch.setattr(progress, "monotonic", lambda: next(seconds))
    assert len(list(progress.each("reading", range(1200)))) == 1200
    assert capfd.readouterr() == ("", "reading: 3 of 1,200\n")
