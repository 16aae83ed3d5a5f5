"""Hydra's private modules: used in one place; two folders are searched, a caller's own instance is put back."""

import re
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

import rowsft
from rowsft.config.compose import sweep
from rowsft.config.hydra_internals import open_hydra
from rowsft.config_folders import SHIPPED
from rowsft.errors import UserError

PACKAGE = Path(rowsft.__file__).parent


def test_one_module_imports_what_hydra_keeps_private():
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "hydra_plugins").glob("*.py")]
    private = re.compile(r"^\s*(from|import) hydra\._|^\s*from hydra\S* import .*\b_\w", re.M)
    named = [path.name for path in files if private.search(path.read_text())]
    assert named == ["hydra_internals.py"]


def test_two_folders_are_searched_and_a_callers_instance_is_put_back(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("name: mine\n")
    holder = GlobalHydra.instance()
    with open_hydra(SHIPPED, None) as outer:
        assert "mine" not in outer.config_loader.get_group_options("method")
        with open_hydra(SHIPPED, tmp_path) as hydra:
            assert {"mine", "lora"} <= set(hydra.config_loader.get_group_options("method"))
            assert holder.hydra is hydra
        assert holder.hydra is outer


@pytest.mark.parametrize(
    ("override", "expected"),
    [("seed=interval(1,2)", "list the values"), ("hydra.sweeper.max_batch_size=0", "max_batch_size=0")],
)
def test_a_sweep_without_a_list_of_jobs_is_refused_before_anything_is_written(override, expected, tmp_path):
    with pytest.raises(UserError, match=expected):
        sweep([f"store={tmp_path}/runs", override])
    assert not (tmp_path / "runs").exists()
