"""What every benchmark's table is made of. Imports nothing: `make gpu` draws its page before torch is there."""

import statistics


def table(titles: list[str], cells: list[list[str]]) -> str:
    """Markdown, a line a row."""
    lines = [titles, ["---"] * len(titles), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def failed(name: str, row: dict, width: int) -> list[str]:
    """The cells of a row that could not be measured: why, and empty ones up to `width`."""
    said = "oom" if row.get("oom") else f"failed: {row['error'][:160]}".replace("|", "/")
    return [name, said, *[""] * (width - 2)]


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": float(statistics.median(values)), "low": min(values), "high": max(values)}


def spread_text(value: dict[str, float], scale: float = 1, form: str = ".2f") -> str:
    """`median [lowest, highest]`, each times `scale`."""
    median, low, high = (f"{scale * value[key]:{form}}" for key in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"


def ratio(value: float | dict | None, form: str = ".3f", none: str = "–") -> str:
    """A ratio, or one with its spread."""
    if isinstance(value, dict):
        return spread_text(value, form=form)
    return none if value is None else f"{value:{form}}"
