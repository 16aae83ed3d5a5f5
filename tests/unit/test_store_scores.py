"""Scores kept in the store: read back bit for bit, computed once, and never trusted when damaged."""

import subprocess
import sys

import pytest
import torch
from scoring import causal_batches
from tiny import tiny_llama

from rowsft.importance import Calibration
from rowsft.importance.calibration import Rehearsal
from rowsft.methods.row_sft import RowSFT
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets
from rowsft.store.score_cache import ScoreCache

KEY = {"model": {"source": "a"}, "metric": "taylor", "axes": ["rows"], "layers": ["x.y"]}
SCORES = {"x.y": {"rows": torch.tensor([0.5, -1.0]), "columns": torch.ones(4)}, "x.z": {"rows": torch.zeros(3)}}


def equal(left, right):
    return left.keys() == right.keys() and all(
        left[n].keys() == right[n].keys() and all(torch.equal(left[n][axis], right[n][axis]) for axis in left[n])
        for n in left
    )


def test_scores_come_back_bit_for_bit(tmp_path):
    cache = ScoreCache(tmp_path)
    assert cache.get(KEY) is None
    assert list(tmp_path.iterdir()) == []
    cache.put(KEY, SCORES)
    assert equal(ScoreCache(tmp_path).get(KEY), SCORES)
    assert cache.path(KEY).parent == tmp_path / "scores"
    assert [path.name for path in cache.folder.iterdir()] == [cache.path(KEY).name]


def test_every_part_of_the_key_counts_but_not_its_order(tmp_path):
    cache = ScoreCache(tmp_path)
    others = [{**KEY, name: "other"} for name in KEY] + [{**KEY, "seed": 1}]
    assert len({cache.path(key) for key in [KEY, *others]}) == len(others) + 1
    assert cache.path(dict(reversed(KEY.items()))) == cache.path(KEY)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "another"])
def test_a_damaged_file_counts_as_absent_and_is_replaced(tmp_path, damage):
    cache = ScoreCache(tmp_path)
    cache.put(KEY, SCORES)
    path = cache.path(KEY)
    whole = path.read_bytes()
    if damage == "another":
        cache.put({**KEY, "metric": "l1"}, SCORES)
        path.write_bytes(cache.path({**KEY, "metric": "l1"}).read_bytes())
    else:
        path.write_bytes({"truncated": whole[:-3], "empty": b"", "text": b"not scores"}[damage])
    assert cache.get(KEY) is None
    cache.put(KEY, SCORES)
    assert equal(cache.get(KEY), SCORES)


def test_reading_while_others_write_gives_whole_scores(tmp_path):
    """Two writers replace the file by a longer and a shorter one: header and data must be of one file."""
    cache = ScoreCache(tmp_path)
    cache.put(KEY, SCORES)
    writer = (
        "import sys, torch; from rowsft.store.score_cache import ScoreCache\n"
        "cache, scores = ScoreCache(sys.argv[1]), torch.full((int(sys.argv[2]),), 0.5)\n"
        f"for _ in range(200): cache.put({KEY!r}, {{'x.y': {{'rows': scores}}}})"
    )
    sizes = (2, 5000)
    processes = [subprocess.Popen([sys.executable, "-c", writer, str(tmp_path), str(size)]) for size in sizes]
    while any(process.poll() is None for process in processes):
        scores = cache.get(KEY)
        assert equal(scores, SCORES) or any(equal(scores, {"x.y": {"rows": torch.full((n,), 0.5)}}) for n in sizes)
    assert [process.wait() for process in processes] == [0, 0]
    assert [path.name for path in cache.folder.iterdir()] == [cache.path(KEY).name]


def select(tmp_path, rows, identity=None, batches=None, **settings):
    """Selection with a score cache; the ids chosen and the number of forward passes."""
    model, passes = tiny_llama(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    method = RowSFT(**{"importance": "taylor", **settings})
    resolved = method.solve(Budget(rows=rows), model, Targets())
    given = Calibration(causal_batches(), ScoreCache(tmp_path), identity or {"model": "tiny"})
    chosen = method.select(model, resolved, given if batches is None else batches).chosen
    return {name: each.rows for name, each in chosen.items()}, len(passes), given.was_read


def test_a_sweep_over_budgets_scores_once(tmp_path):
    _, passes, was_read = select(tmp_path, 4)
    assert passes > 0
    assert not was_read
    for rows in (2, 9):
        ids, passes, was_read = select(tmp_path, rows)
        assert (passes, was_read) == (0, True)
        fresh, _, _ = select(tmp_path / str(rows), rows)
        assert all(torch.equal(ids[name], fresh[name]) for name in fresh)
    assert select(tmp_path, 4, group_bytes=0)[1] == 0
    assert select(tmp_path, 4, importance="grad2")[1] > 0
    assert select(tmp_path, 4, seed=5)[1] > 0
    # The run's seed draws the head and orders the data; the method's own seed must not hide it.
    assert select(tmp_path, 4, identity={"model": "tiny", "seed": 1}, seed=5)[1] > 0


def test_a_damaged_cache_is_scored_again(tmp_path):
    expected, _, _ = select(tmp_path, 4)
    (file,) = (tmp_path / "scores").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    ids, passes, was_read = select(tmp_path, 4)
    assert passes > 0
    assert not was_read
    assert all(torch.equal(ids[name], expected[name]) for name in ids)
    assert select(tmp_path, 4)[1] == 0


def test_metrics_without_data_are_not_kept(tmp_path):
    select(tmp_path, 4, importance="l2")
    assert not (tmp_path / "scores").exists()


def test_a_rehearsal_draws_twice_and_keeps_nothing(tmp_path):
    _, passes, _ = select(tmp_path, 4, importance="zo_taylor", batches=Rehearsal(causal_batches()))
    assert passes == 4
    assert not (tmp_path / "scores").exists()


def test_report_paths_load_no_torch():
    code = "import sys, rowsft.store.score_cache; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
