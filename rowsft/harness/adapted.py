"""A finished run's model as the harness gets it: the base loaded once for all runs that share it, adapters swapped."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import OmegaConf
from peft import PeftModel
from torch import Tensor, nn

from rowsft.config.instantiate import instantiated
from rowsft.errors import UserError
from rowsft.harness.checks import Checks, check, logits_of
from rowsft.methods.base import ReloadedMethod, ResolvedMethod, method_of
from rowsft.models.loading import Loaded, load
from rowsft.store import Record
from rowsft.tasks import Task
from rowsft.tasks.heads import CAUSAL_LM


@dataclass(frozen=True)
class Adapted:
    """A run's model in eval mode with its tokenizer; autocast: bf16, fp16 or None, as the run evaluates."""

    run_id: str
    model: nn.Module
    tokenizer: Any
    checks: Checks
    autocast: str | None


class Loader:
    """Models of runs on one device. A base model stays loaded until a run asks for another."""

    def __init__(self, device: torch.device):
        self.device = device
        self._key: str | None = None
        self._base: Loaded | None = None
        self._logits: Tensor | None = None

    def key(self, record: Record) -> str:
        """What two runs have in common that share a base model."""
        assert record.result is not None, "only finished runs are asked for"
        if self._folder(record) is not None and self._method(record).saves_checkpoint:
            return record.id
        return json.dumps([record.config["model"], record.result.model_facts.revision], sort_keys=True, default=str)

    def check(self, record: Record) -> None:
        """Raise UserError for a run whose model the harness cannot score, or whose adapter is gone; loads nothing."""
        task = instantiated("task", OmegaConf.create(record.config["task"]), Task)
        if task.head != CAUSAL_LM:
            raise UserError(
                f"run {record.id}: its model is a {task.head.name} model; the harness scores causal language models: "
                "evaluate runs of tasks such as prompt_response"
            )
        method = self._method(record)
        if method.trains and self._folder(record) is None:
            raise UserError(
                f"run {record.id}: its adapter is gone, so there is nothing to evaluate; run it again (--rerun)"
            )
        if not record.config["model"].get("pretrained", True) and not (method.trains and method.saves_checkpoint):
            raise UserError(
                f"run {record.id}: its base had random weights (model.pretrained=false), which no run keeps; evaluate "
                "runs of pretrained models, or of full fine-tuning"
            )
        if method.trains and not method.saves_checkpoint and not isinstance(method, ReloadedMethod):
            raise UserError(
                f"run {record.id}: method {method.name} has no `load`; see rowsft.methods.base.ReloadedMethod"
            )

    @contextmanager
    def adapted(self, record: Record) -> Iterator[Adapted]:
        """The run's model for the block. Raises UserError where the base is not the one that the run started from."""
        method, folder, result = self._method(record), self._folder(record), record.result
        assert result is not None, "only finished runs are asked for"
        autocast = (record.config.get("trainer") or {}).get("autocast")
        if method.trains and method.saves_checkpoint:
            self._forget()
            own = {**record.config["model"], "source": str(folder), "revision": None, "pretrained": True}
            loaded = load(own, CAUSAL_LM)
            yield Adapted(record.id, self._placed(loaded), loaded.tokenizer, Checks(), autocast)
            return
        base = self._base_of(record)
        assert self._logits is not None, "taken when the base was loaded"
        if not method.trains:
            yield Adapted(record.id, base.model, base.tokenizer, Checks(), autocast)
            return
        assert isinstance(method, ReloadedMethod) and folder is not None, "checked before"
        model = method.load(base.model, ResolvedMethod(dict(result.resolved)), folder).eval()
        try:
            checks = check(record.id, model, self._logits)
            yield Adapted(record.id, model, base.tokenizer, checks, autocast)
        finally:
            self._take_off(model)

    def _base_of(self, record: Record) -> Loaded:
        """The base model of a run: the one that is loaded, if it is that."""
        key = self.key(record)
        if self._base is None or key != self._key:
            self._forget()
            loaded = load(record.config["model"], CAUSAL_LM)
            assert record.result is not None, "only finished runs are asked for"
            recorded = record.result.model_facts.revision
            if recorded not in (None, loaded.revision):
                raise UserError(
                    f"run {record.id} was trained on revision {recorded} of {record.config['model']['source']}, which "
                    f"is now {loaded.revision}; put the old one back, or run again"
                )
            self._placed(loaded)
            self._base, self._key = loaded, key
            self._logits = logits_of(loaded.model)
        return self._base

    def _take_off(self, model: nn.Module) -> None:
        """Leave the base as it was before the adapter; forget it where it is not, to the bit."""
        base, before = self._base, self._logits
        if isinstance(model, PeftModel) and base is not None and before is not None:
            plain = model.unload()
            if plain is base.model and torch.equal(logits_of(base.model.eval()), before):
                return
        self._forget()

    def _forget(self) -> None:
        self._base = self._key = self._logits = None

    def _placed(self, loaded: Loaded) -> nn.Module:
        model: Any = loaded.model
        return model.to(self.device).eval()

    @staticmethod
    def _method(record: Record) -> Any:
        return method_of(OmegaConf.create(record.config["method"]))

    @staticmethod
    def _folder(record: Record):
        folder = record.file("adapter")
        return folder if folder is not None and folder.is_dir() else None
