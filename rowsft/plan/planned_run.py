"""What a configuration would train, put together on the meta device by the code that runs it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from transformers import PreTrainedModel

from rowsft.config.instantiate import instantiated
from rowsft.config.run_spec import method_settings
from rowsft.config.settings import TrainerSettings
from rowsft.config.typed import plain
from rowsft.errors import UserError
from rowsft.methods.base import Method, ResolvedMethod, method_of
from rowsft.methods.optimizing import check_optimizing
from rowsft.models.blueprint import blueprint
from rowsft.models.capacity import positions_of
from rowsft.models.loading import recompute_activations, targets_of
from rowsft.plan.autocast import autocasting, claimed_alike
from rowsft.plan.lengths import Lengths, assumed
from rowsft.plan.missing_files import missing_files
from rowsft.selection.budget import Budget
from rowsft.tasks import Size, Task


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
    head_settings: dict[str, Any] = field(default_factory=dict)

    def base(self) -> PreTrainedModel:
        """The base model with its head on the meta device, in train mode."""
        return blueprint(self.config.model, self.task.head, self.head_settings).train()

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
        budget = Budget(**plain(self.config.budget))
        return self.method.solve(budget, model, targets_of(self.config.model, self.task.head))

    def attached(self, resolved: ResolvedMethod) -> nn.Module:
        """A new base model with the method on it."""
        base = self.base()
        if self.method.trains:
            # The trainer turns it off; a cache would keep every layer's keys and values through the step.
            base.config.use_cache = False
            if self.settings.gradient_checkpointing:
                # Not before: scoring goes without.
                recompute_activations(base)
        # What the method adds is made on the meta device, too.
        with torch.device("meta"):
            model = self.method.attach(base, resolved)
        return autocasting(model, self.settings.autocast) if self.settings.autocast else model

    def batch(self, model: nn.Module, evaluated: bool = False) -> dict[str, Any]:
        """A batch without data, as the task's collator would make it for `model`: of training, or of evaluation."""
        size = self.lengths.evaluated if evaluated else Size(self.lengths.tokens, self.lengths.answer)
        count = self.settings.eval_batch_size if evaluated else self.settings.batch_size
        return self.dummy_batch(model, self.task, count, size)

    def dummy_batch(self, model: nn.Module, task: Task, count: int, size: Size) -> dict[str, Any]:
        """A batch without data of `count` examples of that size, as the collator of `task` makes it for `model`."""

        def empty(shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
            return claimed_alike(torch.empty(shape, dtype=dtype, device="meta"), model)

        batch = task.dummy_batch(model, count, size, empty)
        if not self.gpu:
            return batch
        # What is a view on the host is copied to a GPU alone, without the rest of its storage.
        return {name: value.contiguous() if isinstance(value, Tensor) else value for name, value in batch.items()}

    def loss_arguments(self, model: nn.Module) -> dict[str, Any]:
        """What the trainer gives the forward of `model` besides the batch."""
        if self.task.head.normalises_by_tokens:
            return {"num_items_in_batch": claimed_alike(torch.empty((), dtype=torch.int64, device="meta"), model)}
        return {}


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
    if settings.strategy is not None:
        raise UserError(
            f"trainer.strategy={settings.strategy}: a plan is of one process; leave it out, and divide "
            "trainer.batch_size by the number of processes; docs/devices.md says what each holds besides"
        )
    task = instantiated("task", config.task, Task)
    lengths = lengths or assumed(task)
    head_settings, labels_assumed = _head_settings(task)
    run = PlannedRun(
        config=config,
        settings=settings,
        method=method_of(OmegaConf.create(method_settings(config))),
        task=task,
        lengths=lengths,
        padded=settings.batch_size > 1 and not lengths.alike[0],
        gpu=settings.device != "cpu",
        head_settings=head_settings,
    )
    check_optimizing(run.method, settings)
    run.assumptions.append(f"{lengths.description}, {_padding(run.padded)}")
    if task.head.answers:
        if lengths.answer is None:
            run.assumptions.append("any of an example's tokens may be of the response: logits are kept of all")
        run.assumptions.append("evaluation: every answer has a prompt of its own")
    if settings.optimizer == "adamw_8bit" and not run.gpu:
        run.assumptions.append(
            "trainer.optimizer=adamw_8bit: on a CPU bitsandbytes' step takes a few copies of one tensor in 32 bit, "
            "which are not planned"
        )
    if settings.fused_linear_cross_entropy:
        run.assumptions.append("trainer.fused_linear_cross_entropy is not planned: logits are counted whole")
    run.assumptions += [*labels_assumed, *missing_files(config)]
    return run


def _head_settings(task: Task) -> tuple[dict[str, Any], list[str]]:
    try:
        return task.head_settings(), []
    except UserError as error:
        # The data, which know the classes, are not there yet, or a run would refuse them.
        assumption = f"two classes, since the data that would say how many are not read: {error}"
        return task.head_settings(num_labels=2), [assumption]


def _padding(padded: bool) -> str:
    return "padding masks included" if padded else "without padding"
