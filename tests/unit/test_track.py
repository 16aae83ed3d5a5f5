"""Trackers: what an offline W&B run leaves on disk, and that no W&B error reaches the job."""

import logging
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from wandb_files import items, read_records, run_python

from rowsft.errors import UserError
from rowsft.tracking.tracker import NullTracker, WandbTracker, tracking
from rowsft.tracking.wandb_tracker import readable_name

CONF = Path(__file__).parents[2] / "conf"


JOB = """
from rowsft.tracking.tracker import WandbTracker, tracking
config = {"method": {"name": "lora", "r": 8}, "task": {"name": "stsb"}, "model": {"name": "minilm"}, "seed": 3}
tracker = WandbTracker(project="rows", entity="lab", tags=["draft"], dir="logs")
with tracking(tracker, "0123456789ab-1", config, "budget sweep"):
    for step in range(1, 4):
        tracker.log(step, {"train/loss": 1 / step})
    tracker.summary({"metrics/test/accuracy": 0.75, "memory/train/peak_allocated_bytes": 1024})
    ENDING
"""


def job(ending: str) -> str:
    return JOB.replace("ENDING", ending)


def test_offline_run_holds_curves_summary_config_group_and_exit_code(tmp_path):
    done = run_python(job("pass"), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    records = read_records(tmp_path / "logs")

    (run,) = [record.run for record in records if record.HasField("run")]
    assert (run.project, run.entity, run.run_id, run.run_group) == ("rows", "lab", "0123456789ab-1", "budget sweep")
    assert (run.job_type, list(run.tags)) == ("lora", ["draft"])
    assert run.display_name == "lora stsb minilm seed 3 0123456789ab-1"
    config = items(run.config.update)
    assert config["method"] == {"name": "lora", "r": 8} and config["seed"] == 3

    rows = [items(record.history.item) for record in records if record.HasField("history")]
    assert [(row["_step"], row["train/loss"]) for row in rows] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]

    summary = {}
    for record in records:
        if record.HasField("summary"):
            summary |= items(record.summary.update)
    assert summary["metrics/test/accuracy"] == 0.75
    assert summary["memory/train/peak_allocated_bytes"] == 1024
    assert summary["state"] == "done"

    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]


@pytest.mark.parametrize(
    ("ending", "state"),
    [
        ("raise ValueError('boom')", "failed"),
        ("raise KeyboardInterrupt", "interrupted"),
        ("tracker.finish('oom')", "oom"),
    ],
)
def test_run_that_does_not_end_well_is_closed_with_exit_code_1(tmp_path, ending, state):
    done = run_python(job(ending), tmp_path)
    assert (done.returncode == 0) == (state == "oom")
    assert state != "failed" or "ValueError: boom" in done.stderr
    records = read_records(tmp_path / "logs")
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1]
    states = [items(record.summary.update).get("state") for record in records if record.HasField("summary")]
    assert [value for value in states if value is not None] == [state]
    assert len([record for record in records if record.HasField("history")]) == 3


def test_two_runs_in_one_process_stay_apart(tmp_path):
    code = """
from rowsft.tracking.tracker import WandbTracker, tracking
for number in (1, 2):
    with tracking(WandbTracker(dir=f"logs{number}"), f"run-{number}", {"method": {"name": "full"}}, "g") as tracker:
        tracker.log(1, {"number": number})
"""
    done = run_python(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for number in (1, 2):
        records = read_records(tmp_path / f"logs{number}")
        assert [items(r.history.item)["number"] for r in records if r.HasField("history")] == [number]
        assert [r.run.run_id for r in records if r.HasField("run")] == [f"run-{number}"]


KEY = "0123456789" * 4
ASK = "from rowsft.compat.wandb import usual_mode; print(usual_mode())"


@pytest.mark.parametrize(
    ("variables", "netrc", "mode"),
    [
        ({}, None, "offline"),
        ({"WANDB_API_KEY": KEY}, None, "online"),
        ({}, f"machine api.wandb.ai login user password {KEY}", "online"),
        ({}, f"machine example.org login user password {KEY}", "offline"),
        ({}, "machine", "offline"),
        ({"WANDB_BASE_URL": "https://w.example.org"}, f"machine api.wandb.ai login user password {KEY}", "offline"),
        ({"WANDB_BASE_URL": "https://w.example.org"}, f"machine w.example.org login user password {KEY}", "online"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, None, "offline"),
        ({"WANDB_MODE": "disabled"}, None, "disabled"),
    ],
)
def test_default_mode_is_online_only_with_credentials(tmp_path, variables, netrc, mode):
    if netrc is not None:
        (tmp_path / "netrc").write_text(netrc)
    done = run_python(ASK, tmp_path, **variables)
    assert (done.stdout.strip(), done.returncode) == (mode, 0), done.stderr
    assert netrc == "machine" or done.stderr == ""


def test_explicit_mode_wins_over_credentials_and_environment(tmp_path):
    code = job("pass").replace('dir="logs"', 'dir="logs", mode="offline"')
    done = run_python(code, tmp_path, WANDB_API_KEY=KEY, WANDB_MODE="online")
    assert (done.returncode, done.stderr) == (0, "")
    assert any(record.HasField("exit") for record in read_records(tmp_path / "logs"))


def test_unwritable_folder_warns_once_and_the_job_goes_on(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    tracker = WandbTracker(mode="offline", dir=str(tmp_path / "file" / "logs"))
    steps = []
    with caplog.at_level(logging.WARNING), tracking(tracker, "run-1", {"method": {"name": "lora"}}, "group"):
        for step in (1, 2):
            tracker.log(step, {"train/loss": 1.0})
            steps.append(step)
        tracker.summary({"accuracy": 1.0})
    assert steps == [1, 2]
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "rowsft.tracking.wandb_tracker"]
    assert warning.startswith("W&B start failed (NotADirectoryError")


def test_value_that_wandb_refuses_warns_once_and_the_run_is_still_closed(tmp_path):
    code = """
import logging
logging.basicConfig(format="%(message)s")
from rowsft.tracking.tracker import WandbTracker, tracking
with tracking(WandbTracker(dir="logs"), "run-1", {"method": {"name": "lora"}}, "g") as tracker:
    tracker.log(1, {"loss": 1.0})
    tracker.log("two", {"loss": 2.0})
    tracker.log("three", {"loss": 3.0})
"""
    done = run_python(code, tmp_path)
    assert done.returncode == 0
    assert done.stderr.count("W&B log failed") == 1 and done.stderr.count("W&B") == 1, done.stderr
    records = read_records(tmp_path / "logs")
    assert [items(r.history.item)["loss"] for r in records if r.HasField("history")] == [1.0]
    assert [r.exit.exit_code for r in records if r.HasField("exit")] == [0]


def test_null_tracker_imports_neither_wandb_nor_torch(tmp_path):
    code = """
import sys
from rowsft.tracking.tracker import NullTracker, tracking
with tracking(NullTracker(), "run-1", {}, "group") as tracker:
    tracker.log(1, {"loss": 1.0})
    tracker.summary({"accuracy": 1.0})
print(sorted({"wandb", "torch"} & set(sys.modules)))
"""
    done = run_python(code, tmp_path)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == []


def test_tracker_configs_build_their_trackers():
    with initialize_config_dir(str(CONF), version_base=None):
        assert isinstance(instantiate(compose("tracker/none").tracker), NullTracker)
        config = compose("tracker/wandb", overrides=["tracker.mode=offline", "tracker.tags=[a,b]"]).tracker
    tracker = instantiate(config)
    assert isinstance(tracker, WandbTracker)
    assert (tracker.project, tracker.mode, tracker.tags) == ("rowsft", "offline", ("a", "b"))


def test_unknown_mode_is_refused_by_name():
    with pytest.raises(UserError, match=r"^tracker\.mode=dry: expected online, offline, disabled or null"):
        WandbTracker(mode="dry")


def test_readable_name_leaves_out_what_the_config_lacks():
    assert (
        readable_name({"method": {"name": "none"}, "task": {}, "model": {"name": "bert"}}, "ab-2") == "none bert ab-2"
    )


def test_wandbs_reports_about_itself_are_off(tmp_path):
    """They wait for the server when the process ends, and print of each try."""
    code = """
from wandb.analytics.opentelemetry.opentelemetry_proxy import get_open_telemetry_proxy
print(get_open_telemetry_proxy() is None)
from rowsft.compat.wandb import analytics_off
analytics_off()
print(get_open_telemetry_proxy() is None)
"""
    done = run_python(code, tmp_path, WANDB_API_KEY=KEY)
    assert done.stdout.split() == ["False", "True"], done.stderr


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_wait_without_end_is_refused(seconds):
    with pytest.raises(UserError, match=r"^tracker\.wait_seconds=.*: expected a number of seconds above 0"):
        WandbTracker(wait_seconds=seconds)
