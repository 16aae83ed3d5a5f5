"""What a configuration would train, put together on the meta device by the code that runs it."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from rowsft.config.instantiate import instantiated
from rowsft.config.settings import TrainerSettings
from rowsft.errors import UserError
from rowsft.methods.base import Method, ResolvedMethod, method_of
from rowsft.models.capacity import positions_of
from rowsft.models.loading import blueprint, recompute_activations, targets_of
from rowsft.plan.autocast import autocasting, claimed_alike
from rowsft.plan.lengths import Lengths, assumed
from rowsft.selection.budget import Budget
from rowsft.tasks import Task


@dataclass
class PlannedRun:
    """A configuration and what follows from it alone. lengths: tokens of the examples. padded: whether the batch has
    padding, which a mask of all pairs of tokens then tells. assumptions: what the configuration left open."""

    config: DictConfig
    settings: TrainerSettings
    method: Method
    task: Task
    lengths: Lengths
    padded: bool
    gpu: bool
    assumptions: list[str] = field(default_factory=list)
    labels: int | None = None

    def base(self) -> nn.Module:
        """The base model with its head on the meta device, in train mode."""
        problem = None
        if self.task.head == "sequence_classification":
            # Told, as a run tells it: DeBERTa would look for it in the labels.
            problem = "regression" if self.labels == 1 else "single_label_classification"
        return blueprint(self.config.model, self.task.head, self.labels, problem).train()

    @property
    def length(self) -> int:
        """Padded tokens of every training example."""
        return self.lengths.tokens

    @property
    def positions(self) -> int | None:
        """The longest text that the model has positions for; None where it sets no end."""
        return positions_of(self.base())

    def sizes(self, model: nn.Module) -> ResolvedMethod:
        """The budget, solved for the method on `model`."""
        budget = Budget(**OmegaConf.to_container(self.config.budget))
        return self.method.solve(budget, model, targets_of(self.config.model, self.task.head))

    def attached(self, resolved: ResolvedMethod) -> nn.Module:
        """A new base model with the method on it."""
        model = self.base()
        if self.method.trains:
            # The trainer turns it off; a cache would keep every layer's keys and values through the step.
            model.config.use_cache = False
            if self.settings.gradient_checkpointing:
                # Not before: scoring goes without.
                recompute_activations(model)
        # What the method adds is made on the meta device, too.
        with torch.device("meta"):
            model = self.method.attach(model, resolved)
        return autocasting(model, self.settings.autocast) if self.settings.autocast else model

    def batch(self, model: nn.Module, evaluated: bool = False) -> dict[str, Any]:
        """A batch without data, as the task's collator would make it for `model`: of training, or of evaluation."""
        tokens, answer = self.lengths.evaluated if evaluated else (self.lengths.tokens, self.lengths.answer)
        size = self.settings.eval_batch_size if evaluated else self.settings.batch_size, tokens

        def ids() -> Tensor:
            return claimed_alike(torch.empty(size, dtype=torch.int64, device="meta"), model)

        batch = {"input_ids": ids(), "attention_mask": ids()}
        if self.task.head == "causal_lm":
            # Positions by example, not one row for all: what they turn into is as large as the batch.
            batch |= {"position_ids": ids(), "labels": ids()}
            if answer is None or not _takes_logits_to_keep(model):
                return batch
            # The labels' end alone: on the host a view of all, on a GPU what is copied there.
            end = batch["labels"][:, -answer - 1 :]
            return {**batch, "labels": end.contiguous() if self.gpu else end, "logits_to_keep": answer + 1}
        if getattr(model.config, "type_vocab_size", 0) > 1:
            # BERT's tokenizer tells the texts of a pair apart.
            batch["token_type_ids"] = ids()
        kind = torch.float32 if self.labels == 1 else torch.int64
        return {**batch, "labels": claimed_alike(torch.empty(size[0], dtype=kind, device="meta"), model)}

    def loss_arguments(self, model: nn.Module) -> dict[str, Any]:
        """What the trainer gives the forward of `model` besides the batch."""
        if self.task.head == "causal_lm":
            return {"num_items_in_batch": claimed_alike(torch.empty((), dtype=torch.int64, device="meta"), model)}
        return {}


def _takes_logits_to_keep(model: nn.Module) -> bool:
    # Of the class: autocast puts another function in the place of the instance's own.
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(type(base).forward).parameters


def planned_run(
    config: DictConfig,
    settings: TrainerSettings,
    overrides: Mapping[str, Any] | None = None,
    lengths: Lengths | None = None,
) -> PlannedRun:
    """The run of a composed configuration. overrides: trainer settings that take the place of configured ones.

    lengths: of the examples; None assumes the longest that the task allows.
    Raises UserError for what cannot be planned.
    """
    settings = TrainerSettings(**{**vars(settings), **(overrides or {})})
    task = instantiated("task", config.task, Task)
    lengths = lengths or assumed(task)
    run = PlannedRun(
        config=config,
        settings=settings,
        method=method_of(config.method),
        task=task,
        lengths=lengths,
        padded=settings.batch_size > 1 and not lengths.alike[0],
        gpu=settings.device != "cpu",
    )
    run.assumptions.append(f"{lengths.said}, {_padding(run.padded)}")
    if task.head == "causal_lm":
        if lengths.answer is None:
            run.assumptions.append("any of an example's tokens may be of the response: logits are kept of all")
        run.assumptions.append("evaluation: every answer has a prompt of its own")
    if task.head == "sequence_classification":
        run.labels, said = _labels(task)
        run.assumptions += said
    return run


def _labels(task: Task) -> tuple[int, list[str]]:
    try:
        return task.num_labels, []
    except UserError as error:
        # The data, which know the classes, are not there yet, or a run would refuse them.
        return 2, [f"two classes, since the data that would say how many are not read: {error}"]


def _padding(padded: bool) -> str:
    return "padding masks included" if padded else "without padding"
