"""How the method becomes known to an unmodified peft."""

import copy
import pickle
import subprocess
import sys

import pytest
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

import rowsft
from rowsft.compat.peft import register
from rowsft.tuner import RowSFTConfig, RowSFTModel


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_enum_member_behaves_like_pefts_own():
    member = PeftType.ROW_SFT
    assert isinstance(member, PeftType)
    assert member == "ROW_SFT" == member.value == member.name
    assert PeftType("ROW_SFT") is PeftType["ROW_SFT"] is member
    assert list(PeftType)[-1] is member
    assert list(PeftType).count(member) == 1
    assert pickle.loads(pickle.dumps(member)) is copy.deepcopy(member) is member
    assert PeftType.LORA is PeftType("LORA")


def test_the_mappings_hold_the_method_and_registering_again_changes_nothing():
    before = (list(PeftType), dict(PEFT_TYPE_TO_TUNER_MAPPING), dict(PEFT_TYPE_TO_PREFIX_MAPPING))
    register("ROW_SFT", "row_sft_", RowSFTConfig, RowSFTModel)
    assert (list(PeftType), dict(PEFT_TYPE_TO_TUNER_MAPPING), dict(PEFT_TYPE_TO_PREFIX_MAPPING)) == before
    assert PEFT_TYPE_TO_TUNER_MAPPING["ROW_SFT"] is RowSFTModel
    assert PEFT_TYPE_TO_CONFIG_MAPPING["ROW_SFT"] is RowSFTConfig
    assert PEFT_TYPE_TO_PREFIX_MAPPING["ROW_SFT"] == "row_sft_" == RowSFTModel.prefix


def test_importing_the_package_loads_neither_torch_nor_peft():
    heavy = "{'torch', 'peft', 'transformers', 'numpy'}"
    assert run(f"import rowsft, sys; print({heavy} & set(sys.modules))") == "set()"
    assert run("import rowsft; print(rowsft.__version__)") == rowsft.__version__


@pytest.mark.parametrize(
    "code",
    [
        "import rowsft; from peft import PeftType; print(PeftType.ROW_SFT.value)",
        "import peft; import rowsft; print(peft.PeftType.ROW_SFT.value)",
        "import rowsft.tuner; from peft import PeftType; print(PeftType.ROW_SFT.value)",
        "from rowsft import RowSFTConfig; print(RowSFTConfig(rows=1).peft_type.value)",
        "import rowsft.importance; from peft import PeftType; print(PeftType.ROW_SFT.value)",
        "import rowsft, importlib.util as u; u.find_spec('peft'); import peft; print(peft.PeftType.ROW_SFT.value)",
    ],
)
def test_any_order_of_imports_registers_the_method(code):
    assert run(code) == "ROW_SFT"


def test_attach_is_the_function_wherever_it_is_imported_from():
    code = (
        "from rowsft.tuner.attach import attach, score; import rowsft;"
        " print(rowsft.attach is attach, rowsft.score is score)"
    )
    assert run(code) == "True True"


def test_unknown_attributes_are_refused():
    with pytest.raises(AttributeError, match="nothing_here"):
        rowsft.nothing_here  # noqa: B018
