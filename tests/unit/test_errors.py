"""UserError is a ValueError, and code that catches ValueError lets it pass with its own message."""

import pytest

from rowsft import RowSFTConfig
from rowsft.errors import UserError
from rowsft.models.blueprint import blueprint
from rowsft.store.record import read_file
from rowsft.tasks.heads import CAUSAL_LM


def test_bad_input_is_a_value_error_for_those_who_do_not_know_this_package():
    with pytest.raises(ValueError, match="rows=0 must be a whole number"):
        RowSFTConfig(rows=0)


def test_a_record_that_the_system_refuses_is_not_called_damaged(tmp_path):
    (tmp_path / "record.json").symlink_to("record.json")
    with pytest.raises(UserError, match="it cannot be used"):
        read_file(tmp_path)


def test_a_missing_folder_is_not_called_a_wrong_configuration(tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(UserError) as error:
        blueprint({"source": str(missing)}, CAUSAL_LM)
    assert str(error.value).startswith(f"model.source={missing}: no such folder; expected")
