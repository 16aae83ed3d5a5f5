"""An adapter whose configuration is damaged is refused in one line that names the file."""

import json

import pytest
from peft import LoraConfig, get_peft_model
from rows import family
from task_tools import words
from tiny import tiny_bert

from rowsft.errors import UserError
from rowsft.export import export


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A saved LoRA adapter beside its base model."""
    folder = tmp_path_factory.mktemp("lora")
    tiny_bert(num_labels=3).save_pretrained(folder / "base")
    words().save_pretrained(folder / "base")
    model, _, targets = family("bert", num_labels=3)
    get_peft_model(model, LoraConfig(r=2, target_modules=targets, task_type="SEQ_CLS")).save_pretrained(folder)
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text()) | {"base_model_name_or_path": str(folder / "base")}
    return file, settings


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ([], "it holds no object"),
        ({"peft_type": "NOPE"}, "peft_type=NOPE is no kind of adapter"),
        ({"peft_type": None}, "peft_type=None is no kind of adapter"),
        ({"peft_type": ["LORA"]}, "is no kind of adapter"),
        ({"lora_alpha": "x"}, "cannot be used"),
        ({"r": 0}, "cannot be used"),
        ({"r": None}, "cannot be used"),
        ({"target_modules": 5}, "cannot be used"),
        ({"modules_to_save": 5}, "modules_to_save=5 is damaged"),
        ({"auto_mapping": "x"}, "auto_mapping=x is damaged"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path=5 is damaged"),
        ({"rank_pattern": [1]}, "cannot be used"),
    ],
)
def test_settings_that_no_adapter_has_are_named_with_their_file(adapter, tmp_path, change, expected):
    file, settings = adapter
    file.write_text(json.dumps({**settings, **change} if isinstance(change, dict) else change))
    with pytest.raises(UserError, match=expected) as error:
        export(str(file.parent), "merged", tmp_path / "out", tmp_path)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
