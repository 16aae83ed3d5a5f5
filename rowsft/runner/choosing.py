"""The scores that a run would choose by, without the run."""

from functools import partial

from omegaconf import DictConfig

from rowsft.config.instantiate import instantiated
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import TrainerSettings
from rowsft.errors import UserError
from rowsft.methods.base import CalibratedMethod, ResolvedMethod
from rowsft.models import capacity
from rowsft.models.loading import load
from rowsft.runner.calibration import TrainingBatches
from rowsft.runner.device import run_device
from rowsft.runner.head_warmup import warmed_head
from rowsft.selection.groups import Scores
from rowsft.tasks import Task


def data_scores(
    config: DictConfig, settings: TrainerSettings, method: CalibratedMethod, resolved: ResolvedMethod
) -> Scores:
    """Return the scores of `resolved`'s target layers on the training batches that a run would show the metric.

    The store's scores are used and added to, as a run does. Loads the whole model. Raises UserError for data or a model
    that a run would refuse, and where the number of batches depends on what they choose.
    """
    if settings.calibration_overlap is not None:
        raise UserError(
            f"trainer.calibration_overlap={settings.calibration_overlap}: how many batches score is settled by a run; "
            "set it to null, and trainer.calibration_batches to what that run took"
        )
    task = instantiated("task", config.task, Task)
    task.splits()
    loaded = load(config.model, task.head, task.head_settings(), seed=config.seed)
    capacity.check_length(loaded.model, task.max_length)
    task.check_model(loaded.model)
    if loaded.tokenizer is not None:
        capacity.check_padding(loaded.tokenizer, config.model.source)
    task.limit_lengths(loaded.processor, ["train"])
    examples = task.splits()["train"]
    encoded = task.encode(examples, loaded.processor)
    if loaded.tokenizer is not None:
        source = str(config.model.source)
        capacity.check_encoded(loaded.model, loaded.tokenizer, source, "train", examples, encoded)
    device = run_device(settings)
    model = loaded.model.to(device)  # type: ignore[arg-type]  # its wrapper loses self
    batches = TrainingBatches(encoded, task.collator(loaded.processor, model), settings, config.seed, device)
    warmed = partial(
        warmed_head,
        model,
        resolved.values["head_modules"],
        batches.first(settings.warm_head, repeat=True),
        settings.learning_rate,
    )
    spec = run_spec(config)
    return method.scores(model, resolved, batches.calibration(spec.store, spec.config, loaded.revision, False, warmed))
