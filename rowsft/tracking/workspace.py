"""The dashboard: a W&B workspace whose panels read what the tracker writes, saved there or as a file."""

import json
import logging
from pathlib import Path
from typing import Any

from rowsft.compat.wandb import analytics_off
from rowsft.errors import UserError, shortened
from rowsft.output import redact
from rowsft.store.files import explained, write_atomic
from rowsft.tracking import names
from rowsft.tracking.bounded import bounded

_log = logging.getLogger(__name__)
NAME = "rowsft"
#: The heat map's name among an account's custom charts, and what it draws of a table of names.SELECTION_COLUMNS.
HEAT_MAP = "rowsft-selection"
HEAT_MAP_SPEC: dict[str, Any] = {
    "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
    "title": "rows chosen per layer",
    "data": {"name": "wandb"},
    "mark": {"type": "rect", "tooltip": True},
    "encoding": {
        "x": {"field": "${field:block}", "type": "ordinal", "title": "block"},
        "y": {"field": "${field:module}", "type": "nominal", "title": None},
        "color": {"field": "${field:rows}", "type": "quantitative", "title": "rows", "scale": {"scheme": "blues"}},
        "row": {"field": "name", "type": "nominal", "title": None},
    },
}


def workspace(project: str, entity: str, experiment: str | None = None) -> Any:
    """Return the dashboard as a wandb_workspaces Workspace, of one experiment's runs or of all.

    Raises UserError where wandb-workspaces is not installed.
    """
    ws, wr, expr = _libraries()
    primary, loss = wr.SummaryMetric(names.PRIMARY), wr.SummaryMetric(names.HELD_OUT_LOSS)
    peak, parameters = wr.SummaryMetric(names.TRAIN_PEAK), wr.SummaryMetric(names.PARAMETERS)
    seconds = wr.SummaryMetric(names.TRAIN_SECONDS)

    def scatter(title: str, x: Any, y: Any, log_x: bool | None = None) -> Any:
        return wr.ScatterPlot(title=title, x=x, y=y, log_x=log_x)

    def curve(title: str, name: str, log_y: bool | None = None) -> Any:
        return wr.LinePlot(title=title, x="Step", y=[wr.Metric(name)], log_y=log_y)

    def bars(title: str, *metrics: str) -> Any:
        return wr.BarPlot(title=title, metrics=[wr.SummaryMetric(name) for name in metrics])

    sections = {
        "Result against memory": [
            scatter("result against training peak (MiB)", peak, primary),
            scatter("held-out loss against training peak (MiB)", peak, loss),
        ],
        "Budget": [
            scatter("result against trained parameters", parameters, primary, log_x=True),
            scatter("held-out loss against trained parameters", parameters, loss, log_x=True),
            scatter("training peak (MiB) against trained parameters", parameters, peak, log_x=True),
        ],
        "Curves": [
            curve("training loss", names.TRAIN_LOSS),
            curve("validation loss", names.VALIDATION_LOSS),
            curve("learning rate", names.LEARNING_RATE),
            curve("gradient norm", names.GRAD_NORM, log_y=True),
        ],
        "Time": [
            scatter("result against training seconds", seconds, primary),
            bars("seconds of a step (median)", names.STEP_SECONDS),
            bars("seconds by phase", names.SELECT_SECONDS, names.TRAIN_SECONDS, names.TOTAL_SECONDS),
        ],
        "Memory by part": [
            wr.LinePlot(
                title="one training step, event by event (MiB; one run)",
                x=wr.Metric(names.MEMORY_EVENT),
                y=[wr.Metric(names.memory_step(part)) for part in names.PARTS],
                plot_type="stacked-area",
                max_runs_to_show=1,
            ),
            bars("at the peak of training (MiB)", *(names.memory_at_peak(part) for part in names.PARTS)),
            wr.WeavePanelSummaryTable(table_name=names.LEDGER),
        ],
        "Selection": [
            wr.CustomChart(
                query={"summaryTable": {"tableKey": names.SELECTION}},
                chart_name=f"{entity}/{HEAT_MAP}",
                chart_fields={name: name for name in ("block", "module", "rows")},
            ),
            wr.WeavePanelSummaryTable(table_name=names.SELECTION),
        ],
        "Comparison": [wr.WeavePanelSummaryTable(table_name=names.COMPARISON)],
    }
    columns = (names.PRIMARY, names.HELD_OUT_LOSS, names.TRAIN_PEAK, names.PARAMETERS, names.TRAIN_SECONDS)
    return ws.Workspace(
        name=f"{NAME} {experiment}" if experiment else NAME,
        entity=entity,
        project=project,
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        runset_settings=ws.RunsetSettings(
            filters=[expr.Metric("Group") == experiment] if experiment else "",
            pinned_columns=["run:displayName", *(f"summary:{name}" for name in columns)],
        ),
    )


def specification(made: Any) -> dict[str, Any]:
    """Return the workspace and its chart as JSON, the same for the same arguments."""
    view = made._to_model().model_dump(by_alias=True, exclude_none=True, mode="json")
    return {"workspace": _without_ids(view), "charts": {HEAT_MAP: HEAT_MAP_SPEC}}


def write(made: Any, path: Path) -> None:
    """Write the specification to a file. Raises UserError where it cannot be written."""
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(specification(made), indent=1) + "\n").encode())


def save(project: str, entity: str | None, experiment: str | None, wait_seconds: float) -> str:
    """Make the dashboard on W&B, for the account's own entity unless one is named, and return its address.

    Raises UserError where wandb-workspaces is not installed, and where the server refuses or does not answer in time.
    """
    _libraries()
    try:
        return bounded(lambda: _saved(project, entity, experiment), wait_seconds)
    except UserError:
        raise
    except Exception as error:
        reason = shortened(redact.text(f"{type(error).__name__}: {error}"), 300)
        raise UserError(f"W&B: the workspace cannot be made ({reason}); --out FILE writes it to a file") from error


def _saved(project: str, entity: str | None, experiment: str | None) -> str:
    import wandb

    analytics_off()
    wandb.setup(wandb.Settings(silent=True))
    api = wandb.Api()
    entity = entity or api.default_entity
    if not entity:
        raise UserError("W&B: the account has no default entity; name a user or team with --entity")
    made = workspace(project, entity, experiment)
    try:
        api.create_custom_chart(entity, HEAT_MAP, HEAT_MAP_SPEC["title"], "vega2", "private", HEAT_MAP_SPEC)
    except wandb.Error as error:
        # The one that was made with the last workspace has the same name.
        _log.warning(
            "W&B made no new chart %s (%s); one that is there is used",
            HEAT_MAP,
            shortened(redact.text(str(error)), 200),
        )
    return str(made.save().url)


def _libraries() -> tuple[Any, Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces import expr
    except ImportError as error:
        raise UserError(
            f"the dashboard is built with wandb-workspaces ({error}); pip install 'rowsft[dashboards]'"
        ) from error
    return ws, wr, expr


def _without_ids(node: Any) -> Any:
    """Panels get random ids, which make the same dashboard look like another; W&B makes new ones."""
    if isinstance(node, dict):
        return {key: _without_ids(value) for key, value in node.items() if key != "__id__"}
    return [_without_ids(value) for value in node] if isinstance(node, list) else node
