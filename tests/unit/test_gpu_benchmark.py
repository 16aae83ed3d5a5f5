"""`make gpu` without a GPU: stages, folders, limits and packages; the whole of it once on tiny shapes."""

import argparse
import json
import os
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu
import gpu_packages
import gpu_stages
import gpu_tables
import step
import summary
from contenders import CONTENDERS

pytestmark = pytest.mark.whole

BENCHMARKS = Path(gpu.__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent), "OMP_NUM_THREADS": "1"}
FACTS = {
    "card": {"name": "NVIDIA Tiny", "slug": "tiny", "memory_bytes": 24 * 10**9},
    "commit": "a" * 40,
    "dirty": False,
    "source": "0123456789ab",
    "dry_run": False,
    "packages": {"torch": "2.11.0"},
    "driver": "1",
    "cuda": "13.0",
    "cpu": "two cores",
    "missing_modules": ["datasets"],
}


def stage(code: str = "", **changes) -> gpu_stages.Stage:
    """A stage that runs a line of Python."""
    plain = gpu_stages.Stage(
        "one",
        "One",
        least_seconds=1,
        limit_seconds=60,
        needs_gb=0,
        commands=lambda folder: [[sys.executable, "-c", code, str(folder)]],
        outcome=lambda folder, status: gpu_stages.Outcome("failed" if status else "done", f"status {status}"),
    )
    return replace(plain, **changes)


def called(monkeypatch, tmp_path, stages, minutes=None, began=None, facts=FACTS) -> tuple[int, gpu.Run]:
    """A call of gpu.py with these stages and facts."""
    monkeypatch.setattr(gpu, "stages", lambda dry_run: stages)
    options = argparse.Namespace(out=tmp_path, minutes=minutes, stages=None, dry_run=False)
    run = gpu.Run(options, facts, ENVIRONMENT, time.monotonic() if began is None else began)
    return run.run(), run


def gpu_py(*arguments, **keywords):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, **keywords)


@pytest.mark.slow
def test_the_dry_run_comes_to_every_stage_and_a_second_call_keeps_all_of_it(tmp_path):
    first = gpu_py("--dry-run", "--out", tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    (folder,) = tmp_path.iterdir()
    record = json.loads((folder / "gpu.json").read_text())
    assert {name: found["state"] for name, found in record["stages"].items()} == {
        each.name: "done" for each in gpu_stages.stages(dry_run=True)
    }
    page = (folder / "README.md").read_text()
    assert page in first.stdout
    for words in ("| rows | 2,048 |", "| floor | oom |", "| taylor |", "Largest error of 8 cells", "Nothing: every"):
        assert words in page
    assert page.index("What choosing the rows costs") < page.index("write MB, least / moved")
    assert sum(path.stat().st_size for path in folder.rglob("*.*")) < 1_000_000
    second = gpu_py("--dry-run", "--out", tmp_path)
    assert second.returncode == 0
    assert second.stdout.count("done already") == len(record["stages"])
    again = json.loads((folder / "gpu.json").read_text())
    assert again["stages"] == record["stages"] and len(again["calls"]) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_device_one_line_says_so(tmp_path):
    refused = gpu_py("--out", tmp_path)
    assert refused.returncode == 2
    (line,) = [line for line in refused.stderr.splitlines() if not line.startswith("from .gpu-wheels/")]
    assert line.startswith("gpu: error: torch") and "no CUDA device" in line and "--dry-run" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("minutes", ["0", "-1", "soon", "nan"])
def test_minutes_that_are_none(minutes, tmp_path):
    refused = gpu_py("--minutes", minutes, "--out", tmp_path)
    assert refused.returncode == 2
    assert f"{minutes!r} is not a time; give minutes above 0, such as 9" in refused.stderr


def test_another_commit_or_card_gets_another_folder_and_the_same_is_found_again(monkeypatch, tmp_path):
    write = "import pathlib, sys; pathlib.Path(sys.argv[1], 'wrote').touch()"
    _, first = called(monkeypatch, tmp_path, [stage(write)])
    kept = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    _, other = called(monkeypatch, tmp_path, [stage(write)], facts={**FACTS, "commit": "b" * 40})
    _, card = called(monkeypatch, tmp_path, [stage(write)], facts={**FACTS, "card": {**FACTS["card"], "slug": "big"}})
    assert {path: path.read_bytes() for path in kept} == kept
    assert other.folder.name == f"{first.folder.name}-2"
    assert card.folder.name.endswith("-big")
    assert gpu.folder_of(tmp_path, FACTS) == first.folder


def test_a_stage_done_before_is_not_run_again_and_a_failed_one_is(monkeypatch, tmp_path):
    count = "import pathlib, sys; p = pathlib.Path(sys.argv[1], 'runs'); p.open('a').write('x'); sys.exit({})"
    stages = [stage(count.format(0)), stage(count.format(1), name="two")]
    assert called(monkeypatch, tmp_path, stages)[0] == 1
    status, run = called(monkeypatch, tmp_path, stages)
    assert status == 1
    assert [(run.folder / name / "runs").read_text() for name in ("one", "two")] == ["x", "xx"]


def test_what_the_card_or_the_machine_lacks_is_said_and_the_next_stage_goes_on(monkeypatch, tmp_path):
    stages = [
        stage(name="big", needs_gb=70),
        stage(name="data", modules=("datasets", "hydra")),
        stage(name="assets", assets=("no_such_asset",)),
        stage(),
    ]
    status, run = called(monkeypatch, tmp_path, stages)
    found = run.record["stages"]
    assert status == 0
    assert [found[each.name]["state"] for each in stages] == ["skipped", "skipped", "skipped", "done"]
    assert found["big"]["note"] == "needs a card of 70 GB; this one has 24 GB"
    assert found["data"]["note"].startswith("needs datasets, not installed")
    assert found["assets"]["note"].startswith("needs no_such_asset in")
    page = (run.folder / "README.md").read_text()
    assert all(f"- {name}: skipped: {found[name]['note']}" in page for name in ("big", "data", "assets"))


def test_a_stage_over_its_limit_is_ended_with_all_its_processes_and_keeps_what_it_wrote(monkeypatch, tmp_path):
    code = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "pathlib.Path(sys.argv[1], 'child').write_text(str(child.pid))\n"
        "time.sleep(600)"
    )
    status, run = called(monkeypatch, tmp_path, [stage(code, limit_seconds=3), stage(name="next")])
    assert status == 0
    assert run.record["stages"]["one"]["state"] == "ended"
    assert run.record["stages"]["next"]["state"] == "done"
    child = Path("/proc") / (run.folder / "one" / "child").read_text()
    assert not child.exists() or "Z" in (child / "stat").read_text().rpartition(")")[2].split()[0]


def test_a_stage_that_would_not_fit_is_not_begun(monkeypatch, tmp_path):
    stages = [stage("raise SystemExit(3)", name="long", least_seconds=3000), stage()]
    status, run = called(monkeypatch, tmp_path, stages, minutes=2)
    assert status == 0
    assert run.record["stages"]["long"]["state"] == "not reached"
    assert "its first results take 3000 s" in run.record["stages"]["long"]["note"]
    assert run.record["stages"]["one"]["state"] == "done"
    assert not (run.folder / "long").exists()


def test_a_call_that_is_told_to_end_ends_its_stage_and_says_so(tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(BENCHMARKS / "gpu.py"), "--dry-run", "--stages", "step-8b", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    begun = [process.stdout.readline() for _ in range(2)]
    assert begun[1].startswith("step-8b: ")
    process.terminate()
    assert process.wait(60) == 130
    assert "gpu: interrupted" in process.stderr.read()
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "gpu.json").read_text())["stages"]["step-8b"]["state"] == "begun"
    assert "- step-8b: begun: " in (folder / "README.md").read_text()


def test_every_method_of_a_stage_is_a_contender_and_every_contender_is_found_in_the_source():
    assert gpu_stages.contenders() == list(CONTENDERS)
    for each in gpu_stages.stages(dry_run=False):
        (command, *_) = each.commands(Path("folder"))
        if "--methods" in command and "step.py" in command[1]:
            step._parser().parse_args(command[2:])


def test_rows_say_how_a_stage_ended(tmp_path):
    path = tmp_path / "step.json"
    assert gpu_stages.rows_outcome(path).state == "failed"
    path.write_text(json.dumps({"rows": [{}, {"error": "CUDA out of memory", "oom": True}]}))
    assert gpu_stages.rows_outcome(path) == gpu_stages.Outcome("done", "2 rows, 1 out of memory")
    path.write_text(json.dumps({"rows": [{}, {"error": "no kernel"}]}))
    assert gpu_stages.rows_outcome(path).state == "failed"


def test_a_table_has_the_ratios_and_says_oom():
    numbers = {"trainable_parameters": 5, "total_peak_bytes": 3e9, "total_peak_reserved_bytes": 4e9, "flops": 1}
    numbers |= {"step_peak_bytes": 1.5e9, "tokens_per_step": 512}
    measured = {"floor": numbers | {"total_peak_bytes": 2e9, "step_peak_bytes": 1e9}, "rows": numbers}
    rounds = {"floor": [[0.1, 0.1, 0.1]], "rows": [[0.2, 0.2, 0.2], [0.4, 0.4, 0.4]], "lora": []}
    rows = summary.rows("s", ["floor", "rows", "lora"], measured, rounds, {"lora": "out"}, in_turn=True)
    lines = gpu_tables.step_table([*rows[:2], {**rows[2], "oom": True}]).splitlines()
    sizes = "| rows | 5 | 1.50 | 1.500 | – | 3.00 | 1.500 | – | 4.00 | 1.000 | – |"
    assert lines[3].startswith(f"{sizes} 300.0 [200.0, 400.0] | 3.000 [2.000, 4.000] |")
    assert lines[3].endswith("| 1,707 |")
    assert lines[4].startswith("| lora | oom |")


def test_methods_in_turn_are_written_as_they_come_and_resumed(tmp_path, capsys):
    arguments = ["--shape", "tiny_bert", "--methods", "floor", "lora", "--in-turn", "--rounds", "2", "--steps", "1"]
    arguments += ["--resume", "--out", str(tmp_path)]
    assert step.main(arguments) == 0
    path = tmp_path / "step.json"
    first = json.loads(path.read_text())
    assert [len(first["rounds"]["tiny_bert"][name]) for name in ("floor", "lora")] == [2, 2]
    # As if it had been ended before the second method.
    rounds = {"floor": first["rounds"]["tiny_bert"]["floor"], "lora": []}
    path.write_text(json.dumps({**first, "rows": first["rows"][:1], "rounds": {"tiny_bert": rounds}}))
    assert step.main(arguments) == 0
    second = json.loads(path.read_text())
    assert second["rounds"]["tiny_bert"]["floor"] == rounds["floor"]
    assert second["rounds"]["tiny_bert"]["lora"] != first["rounds"]["tiny_bert"]["lora"]
    assert {key: second["rows"][1][key] for key in ("flops", "total_peak_bytes")} == {
        key: first["rows"][1][key] for key in ("flops", "total_peak_bytes")
    }


def test_out_of_memory_is_a_row_and_the_next_method_goes_on(tmp_path, capsys):
    arguments = ["--shape", "too_large", "tiny_bert", "--methods", "floor", "--in-turn", "--rounds", "1"]
    assert step.main([*arguments, "--out", str(tmp_path)]) == 1
    rows = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert rows[0]["oom"] and "memory" in rows[0]["error"]
    assert rows[1]["shape"] == "tiny_bert" and "error" not in rows[1]


def test_a_method_that_stays_silent_is_ended():
    worker = step.Worker(limit=0.2)
    with pytest.raises(step.WorkerError, match="not done within 0.2 seconds"):
        worker.ready()
    worker.close()


def wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {each}" for each in requires)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{name}.py", f"VERSION = {version!r}\n")
    return path


def test_only_what_is_missing_is_taken_from_the_wheels(monkeypatch, tmp_path):
    """Missing, or asked for by a wheel that is taken in a version that is not installed."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "absent_one", "1.0", "pytest>=9999", "rich", "absent_two; extra == 'more'")
    wheel(wheels, "pytest", "9999.0")
    wheel(wheels, "rich", "9999.0")
    (wheels / "other-1.0-cp27-cp27m-win32.whl").touch()
    monkeypatch.setattr(gpu_packages, "WHEELS", wheels)
    monkeypatch.setattr(gpu_packages, "PACKAGES", tmp_path / "packages")
    path = gpu_packages.environment()["PYTHONPATH"].split(os.pathsep)
    assert path[:2] == [str(BENCHMARKS.parent), str(tmp_path / "packages")]
    unpacked = {each.name for each in (tmp_path / "packages").glob("*.py")}
    assert unpacked == {"absent_one.py", "pytest.py"}


WITHOUT = """\
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {"datasets", "evaluate", "wandb", "gguf", "hydra", "omegaconf", "antlr4"}:
            return None
        return super().find_spec(name, path, target)

sys.meta_path[:] = [Without if each is PathFinder else each for each in sys.meta_path]
"""


def test_steps_and_scores_are_measured_without_the_packages_that_only_runs_need(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join((str(tmp_path), ENVIRONMENT["PYTHONPATH"]))}
    for command in (
        ["step.py", "--shape", "tiny_llama", "--methods", "rows", "lora", "--in-turn", "--rounds", "1"],
        ["selection.py", "--shape", "tiny_llama", "--metrics", "taylor"],
        ["gpu_probe.py"],
    ):
        out = [] if command == ["gpu_probe.py"] else ["--out", str(tmp_path)]
        done = subprocess.run(
            [sys.executable, str(BENCHMARKS / command[0]), *command[1:], *out],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
    assert {"hydra", "datasets", "gguf"} <= set(json.loads(done.stdout)["missing_modules"])
