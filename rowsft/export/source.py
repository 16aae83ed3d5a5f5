"""What is exported: the adapter of a finished run, or an adapter folder on its own."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rowsft.errors import UserError, shortened
from rowsft.layers.packing import LIBRARIES
from rowsft.methods import replaced_base
from rowsft.record import Attempt
from rowsft.selection.targets import HEAD_NAMES
from rowsft.store import Record
from rowsft.store.finding import finished_run
from rowsft.tasks.heads import CAUSAL_LM, IMAGE_CLASSIFICATION, SEQUENCE_CLASSIFICATION, Head

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
# What PEFT puts before the names of the base model.
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Source:
    """name as the user gave it; the adapter's folder; its adapter_config.json; the base model as conf/model describes
    it, with its head; the run's record, None for a bare folder."""

    name: str
    folder: Path
    config: dict[str, Any]
    model: dict[str, Any]
    head: Head
    record: Record | None

    @property
    def result(self) -> Attempt:
        """The latest finished attempt of the run; one of which nothing is known for a bare folder."""
        return (self.record.result if self.record else None) or Attempt.of()

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's tensors under their saved names. Raises UserError for a missing or damaged file."""
        path = self.folder / TENSORS
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read ({error}); expected an adapter saved by PEFT") from error

    def check_converts(self) -> None:
        """Raise UserError unless this is a row-SFT adapter, the kind that is a LoRA adapter in another form."""
        kind = self.config.get("peft_type")
        if kind == "LORA":
            raise UserError(f"{self.name} is a LoRA adapter already, in {self.folder}; there is nothing to convert")
        if kind != "ROW_SFT":
            raise UserError(
                f"{self.name} is an adapter of kind {kind}; only row-SFT turns into LoRA exactly; use --to merged"
            )


def find(run: str, store: Path) -> Source:
    """The run of that id (or its beginning, or its folder) in `store`, or the adapter folder of that path.

    Raises UserError for an unknown or unfinished run, and for a method or folder without an adapter.
    """
    source = _found(run, store)
    if (source.folder / replaced_base.FILE).is_file():
        raise UserError(
            f"{source.name}: its adapter belongs to a base of its own ({source.folder / replaced_base.FILE}), not to "
            "the model that was loaded, and cannot be exported; evaluate it with `rowsft eval`"
        )
    return source


def _found(run: str, store: Path) -> Source:
    path = Path(run)
    try:
        is_adapter = path.is_dir() and not (path / "record.json").is_file()
    except OSError as error:
        raise UserError(f"{shortened(run)}: cannot be looked up ({error.strerror}); give one id or folder") from error
    if is_adapter:
        return _of_folder(path)
    return _of_run(finished_run(run, store))


def _of_run(record: Record) -> Source:
    method = record.config["method"]["name"]
    folder = record.file("adapter")
    if folder is None or not (folder / CONFIG).is_file():
        whole = folder is not None and (folder / "config.json").is_file()
        advice = f"its checkpoint is {folder} already" if whole else "expected a row_sft run"
        raise UserError(f"run {record.id} is of method {method}, which has no adapter to export; {advice}")
    config = _read_config(folder)
    return Source(f"run {record.id}", folder, config, record.config["model"], _head(config, folder), record)


def _of_folder(folder: Path) -> Source:
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{folder}: no {CONFIG} in this folder; expected a saved adapter, or a run that `rowsft runs` lists"
        )
    config = _read_config(folder)
    base = config.get("base_model_name_or_path")
    if not base:
        raise UserError(f"{folder / CONFIG} names no base model; set its base_model_name_or_path")
    saved = [set(name.split(".")) for name in config.get("modules_to_save") or []]
    model = {
        "source": base,
        "revision": config.get("revision"),
        "head_modules": sorted({part for parts in saved for part in parts & HEAD_NAMES}),
        "quantize": config.get("base_quantization"),
    }
    return Source(str(folder), folder, config, model, _head(config, folder), None)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / CONFIG} is damaged ({error}); save the adapter again") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG} is damaged (it holds no object); save the adapter again")
    expected = {"modules_to_save": list, "auto_mapping": dict, "base_model_name_or_path": str, "revision": str}
    for key, expected_type in expected.items():
        if not isinstance(config.get(key), expected_type | None):
            raise UserError(f"{folder / CONFIG}: {key}={shortened(config[key])} is damaged; save the adapter again")
    if config.get("base_quantization") not in (None, *LIBRARIES):
        packed = shortened(config["base_quantization"])
        raise UserError(f"{folder / CONFIG}: base_quantization={packed} is not known; upgrade rowsft")
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise UserError(
            f"{folder / CONFIG}: peft_type={shortened(kind)} is no kind of adapter that the installed PEFT knows; save "
            "the adapter again"
        )
    return config


def _head(config: dict[str, Any], folder: Path) -> Head:
    """By the task type, or by the name of the model class that PEFT wrote down."""
    named = str(config.get("task_type") or (config.get("auto_mapping") or {}).get("base_model_class") or "none")
    for head in (SEQUENCE_CLASSIFICATION, CAUSAL_LM, IMAGE_CLASSIFICATION):
        if named == head.peft_type or named.endswith(head.class_names):
            return head
    raise UserError(
        f"{folder / CONFIG} was made for {named}; expected a causal language model or a sequence classifier: "
        "load the model in Python and call rowsft.export.to_lora(model, folder)"
    )
