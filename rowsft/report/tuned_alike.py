"""Whether the rows of a table were tuned alike, for the fairness contract."""

from collections.abc import Mapping

from rowsft.rates import Trial
from rowsft.report.rows import Row
from rowsft.report.settings import ALPHA
from rowsft.report.tuned import Tuned


def shortcomings(rows: list[Row], tuned: Mapping[int, Tuned]) -> list[str]:
    """Return what keeps these rows from being tuned alike, in words; empty where nothing does."""
    said: list[tuple[str, str]] = []
    for row in rows:
        if (one := tuned.get(id(row))) is None:
            said.append(("not tuned by the sweep", row.title))
            continue
        said += [(text, row.title) for text in one.grid.shortcomings]
        if not one.search.over:
            said.append(("tuning is not complete", row.title))
        elif one.search.best != (own := _own(row, one)):
            what = "not the chosen rate and alpha" if one.grid.alphas else "not the chosen rate"
            said.append((what, f"{row.title} {_at(own)} (chosen: {_at(one.search.best)})"))
        if one.way.at_edge:
            said.append(("the best was still at the edge of what was tried", row.title))
        if set(one.seeds) & {record.config.get("seed") for record in row.done}:
            said.append(("tuned on a seed that is judged", row.title))
    grids = {tuned[id(row)].grid.rates for row in rows if id(row) in tuned}
    if len(grids) > 1:
        said.append(("grids differ", "; ".join(", ".join(f"{rate:g}" for rate in grid) for grid in sorted(grids))))
    titles: dict[tuple[float, ...], dict[str, None]] = {}
    for row in rows:
        if id(row) in tuned:
            titles.setdefault(_tried(tuned[id(row)]), {})[row.info.title] = None
    if len(titles) > 1:
        each = [
            f"{', '.join(names)} by {f'rate and alpha ({_listed(alphas)})' if alphas else 'rate alone'}"
            for alphas, names in sorted(titles.items(), key=lambda item: (-len(item[0]), item[0]))
        ]
        said.append(("some were tuned over a larger grid than others", "; ".join(each)))
    by_reason: dict[str, list[str]] = {}
    for reason, title in said:
        by_reason.setdefault(reason, []).append(title)
    return [_of(reason, titles, len(rows)) for reason, titles in by_reason.items()]


def _tried(one: Tuned) -> tuple[float, ...]:
    """Return the alphas that were chosen from: one alone is no choice."""
    return one.grid.alphas if len(one.grid.alphas) > 1 else ()


def _own(row: Row, one: Tuned) -> Trial:
    """Return what the row itself ran at."""
    alpha = row.settings.get(ALPHA) if one.grid.alphas else None
    return Trial(row.learning_rate or 0, alpha=float(alpha) if isinstance(alpha, int | float) else None)


def _at(trial: Trial | None) -> str:
    if trial is None:
        return "none"
    return f"{trial.rate:g}" + ("" if trial.alpha is None else f" at alpha {trial.alpha:g}")


def _listed(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _of(reason: str, titles: list[str], rows: int) -> str:
    if len(titles) == rows > 1:
        return reason
    return f"{reason}: {titles[0]}" + (f" and {len(titles) - 1} more" if len(titles) > 1 else "")


def in_short(rows: list[Row], tuned: Mapping[int, Tuned]) -> str:
    """Return how the rates of rows that were tuned alike were chosen."""
    members = [tuned[id(row)] for row in rows]
    first = members[0]
    parts = [f"grid {_listed(first.grid.rates)}"]
    if first.grid.alphas:
        parts.append(f"at alpha {_listed(first.grid.alphas)}")
    ways = [way for one in members for way in one.search.ways.values()]
    if any(way.extended for way in ways):
        parts.append("extended where the best lay at an edge")
    if any(way.refined for way in ways):
        parts.append("refined by half a step")
    if any(one.grid.rungs for one in members):
        parts.append("chosen by successive halving")
    plural = "s" * (len(first.seeds) != 1)
    parts.append(f"at seed{plural} {', '.join(map(str, first.seeds))}, which no run here has")
    return ", ".join(parts)
