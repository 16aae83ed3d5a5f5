"""What the harness found, as a table."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from rowsft.cli.terminal import shown
from rowsft.harness import Outcome
from rowsft.output.quantities import NONE, number


def results_table(outcomes: Sequence[Outcome]) -> Table:
    """A line for each run, task and metric, with its standard error."""
    table = Table()
    for name in ("run", "method", "task", "version", "metric"):
        table.add_column(name)
    for name in ("value", "standard error", "examples"):
        table.add_column(name, justify="right")
    for outcome in outcomes:
        for result in outcome.results:
            for key, value in result.metrics.items():
                metric, _, filtered = key.partition(",")
                if metric.endswith("_stderr"):
                    continue
                error = result.metrics.get(f"{metric}_stderr,{filtered}")
                words = (
                    outcome.record.id,
                    outcome.record.config["method"]["name"],
                    result.task,
                    result.task_version or NONE,
                    metric if filtered == "none" else key,
                )
                cells = (number(value, ".4f"), number(error, ".4f"), number(result.examples, ","))
                table.add_row(*(Text(shown(word)) for word in words), *cells)
    return table
