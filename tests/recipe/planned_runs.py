"""A plan and the run that it plans, side by side."""

import json
import shutil

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.plan import plan
from rowsft.runner.run import run


def both(workshop, data, family, *overrides):
    """The plan from nothing but a configuration, and the memory that the run's record tells of."""
    task = {"llama": "pairs", "bert": "texts"}[family]
    # A classifier that decodes: such a model keeps keys and values for later tokens unless it is told not to.
    source = "llama" if "method=head" in overrides else family
    given = [
        *workshop.overrides(family),
        f"task.data.path={data / task}.jsonl",
        "task.max_length=24",
        "trainer.steps=2",
    ]
    given += overrides
    if family == "bert":
        given.append("task.labels=[bad,good]")
    if source != family:
        given += ["model.target_modules=[q_proj,v_proj]", "model.exclude_modules=null", "model.head_modules=[score]"]
        given.append(f"model.source={workshop.folder / 'models' / source}")
    config = compose([*given, f"model.source={without_weights(workshop, source)}"])
    planned = plan(config, trainer_settings(config))
    config = compose(given)
    outcome = run(run_spec(config), trainer_settings(config), rerun=True, say=lambda text: None)
    assert outcome.state == "done", outcome.message
    record = json.loads((outcome.folder / "record.json").read_text())
    return planned, record["attempts"][-1]["memory"]


def without_weights(workshop, source):
    """A folder with a model's configuration alone."""
    bare = workshop.folder / "bare" / source
    bare.mkdir(parents=True, exist_ok=True)
    shutil.copy(workshop.folder / "models" / source / "config.json", bare)
    return bare
