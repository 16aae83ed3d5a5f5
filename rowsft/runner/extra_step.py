"""One more training step once a run's own are done, as the Trainer itself takes it: for measuring its memory."""

from collections.abc import Callable
from typing import cast

from transformers import Trainer

from rowsft.batch import largest_batch
from rowsft.compat.trainer import clip_gradients, labelled_tokens, watched
from rowsft.runner.trainer import OrderedTrainer


def largest_micro_batch(trainer: OrderedTrainer) -> list[dict]:
    """Return the largest training micro-batch of this process: the one whose step sets the memory peak."""
    size, data = trainer.args.per_device_train_batch_size, cast(list[dict], trainer.train_dataset)
    batches = [data[first : first + size] for first in range(0, len(data), size)]
    # Several processes take batches in turn.
    return largest_batch(batches[trainer.args.process_index :: trainer.args.world_size])


def extra_step(
    trainer: OrderedTrainer,
    batch: list[dict],
    enter: Callable[[str], None] = lambda phase: None,
    hold: Callable[[dict], None] = lambda inputs: None,
) -> None:
    """Take one more full optimizer step on `batch`, as the Trainer itself does. It changes the model: record first.

    enter: told when "forward", "backward" and "optimizer_step" begin: the next phase as soon as a backward returns.
    hold: shown what the model is given, on its device.
    """
    micro = [trainer.data_collator([dict(example) for example in batch])] * trainer.settings.gradient_accumulation
    tokens = labelled_tokens(trainer, micro)
    trainer.current_gradient_accumulation_steps = len(micro)
    for number, inputs in enumerate(micro):
        enter("forward")
        after = "forward" if number + 1 < len(micro) else "optimizer_step"
        with watched(trainer, hold, lambda: enter("backward"), lambda after=after: enter(after)):
            # Trainer's own step, not the counting one: no clock runs here.
            Trainer.training_step(trainer, trainer.model_wrapped, dict(inputs), tokens)
    if trainer.settings.max_grad_norm > 0:
        clip_gradients(trainer)
    assert trainer.optimizer is not None, "made by the training before"
    trainer.optimizer.step()
    trainer.after_step(0)
    trainer.model_wrapped.zero_grad()
