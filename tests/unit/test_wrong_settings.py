"""What a command line may not say: each in one line that names the key, before anything is built or recorded."""

from dataclasses import dataclass

import pytest
from omegaconf import OmegaConf
from refusals import refusal

from rowsft.cli.main import main
from rowsft.config.compose import compose
from rowsft.config.instantiate import instantiated
from rowsft.errors import one_line
from rowsft.methods.base import method_of
from rowsft.tasks import Task


def refused(capsys, *arguments: str) -> str:
    """The one line that the command line ends with."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    lines = capsys.readouterr().err.splitlines()
    assert (stop.value.code, len(lines)) == (2, 1), lines
    assert lines[0].startswith("rowsft: error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method=null", "method=null: expected a name"),
        ("~method", "~method"),
        ("~model", "~model"),
        ("~task", "~task"),
        ("method=[lora,head]", "expected one name"),
        ("+method=lora", "method=NAME"),
        ("method@x=lora", "method=NAME"),
        ("store=null", "store=null: expected text"),
        ("++store=[1]", "store="),
        ("store=", "store=''"),
        ("experiment_name=[1]", "experiment_name="),
        ("++budget.default=99", "budget.default=99: expected a mapping"),
        ("budget.rows=true", "budget.rows=true: expected a whole number or null"),
        ("trainer.evaluate.a.b=1", "trainer.evaluate.a.b=1"),
        ("trainer.steps=true", "trainer.steps=true: expected a whole number or null"),
        (f"trainer.steps={10**30}", "within 64 bits"),
        ("trainer.batch_size=1000000000", "at most 1,000,000,000"),
        ("trainer.learning_rate=nan", "trainer.learning_rate=nan: expected a finite number"),
        ("trainer.learning_rate=1e400", "trainer.learning_rate=inf: expected a finite number"),
        ("seed=x${method}", "seed=x${method}"),
        ("seed=true", "seed=true: expected a whole number"),
        ("seed=1e400", "seed=inf"),
        ("seed=${oc.env:ROWSFT_NOT_SET}", "ROWSFT_NOT_SET"),
        (f"seed={'9' * 5000}", "seed=999"),
        (f"method.importance={'[' * 150}{']' * 150}", "nested too deep"),
        ("model.head_modules=5", "model.head_modules=5: expected a list"),
        ("model.trust_remote_code=1", "model.trust_remote_code=1: expected true or false"),
        ("tuned=5", "tuned=5"),
        ("tuned={learning_rate:{lora:fast}}", "tuned.learning_rate.lora=fast: expected a finite number"),
        ("method=a\nb", r"method=a\nb: no such method"),
        ("\udcff", "not valid UTF-8"),
    ],
)
def test_values_that_cannot_be_are_one_line(capsys, override, said):
    assert said in refused(capsys, "run", "--show-config", override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+model.load_in_4bit=true", "model.load_in_4bit: nothing reads this key"),
        ("++model.attn_implementatio=eager", "did you mean model.attn_implementation?"),
        ("+x=1", "x: nothing reads this key"),
        ("+ignores=[seed]", "ignores: nothing reads this key"),
        ("+trainer.learning_rates=1", "did you mean trainer.learning_rate?"),
        ("+budget.row=1", "did you mean budget.rows?"),
        ("+method.dropuot=0.1", "did you mean method.dropout?"),
        ("+task.max_len=3", "did you mean task.max_length?"),
        ("+task.limits.tset=3", "did you mean task.limits.test?"),
        ("+tracker.project=x", "tracker.project: nothing reads this key"),
    ],
)
def test_a_key_that_nothing_reads_is_an_error_with_the_nearest(override, said):
    assert said in refusal(compose, [override])


def test_a_key_that_the_target_takes_may_be_added():
    """conf/tracker/none.yaml has no project; W&B's class takes one."""
    added = [
        "++tracker._target_=rowsft.tracking.tracker.WandbTracker",
        "+tracker.project=mine",
        "+tracker.tags=[paper]",
    ]
    assert compose(added).tracker.project == "mine"


def test_a_tracker_without_settings_says_so(capsys):
    said = refused(capsys, "run", "+tracker.x=1")
    assert said.endswith(" tracker.x: nothing reads this key; rowsft.tracking.tracker.NullTracker takes no settings")


@dataclass
class Own:
    """A user's own method: keys of its own, and everything that a method has."""

    name: str
    strength: float
    parts: list[str]
    trains = saves_checkpoint = False

    def solve(self, budget, model, targets): ...
    def attach(self, model, resolved): ...
    def trainable(self, model): ...
    def save(self, model, folder): ...
    def merge(self, model): ...


class Selecting(Own):
    def select(self, model, resolved, calibration): ...


def own(**keys) -> OmegaConf:
    return OmegaConf.create({"_target_": f"{__name__}.Own", "name": "own", "strength": 1, "parts": ["a"], **keys})


def test_a_users_own_method_keeps_its_own_keys():
    assert method_of(own()).strength == 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (own(strenght=2), "method.strenght: nothing reads this key; did you mean method.strength?"),
        (own(strength="much"), "method.strength=much: expected a finite number"),
        (own(parts="a"), "method.parts=a: expected a list of which each is text"),
        (own(_target_="no.such.Thing"), "method._target_=no.such.Thing: cannot be imported"),
        (
            own(_target_="builtins.dict"),
            "is not a method, it has no attach, merge, name, save, saves_checkpoint",
        ),
        (
            own(_target_=f"{__name__}.Selecting"),
            "is not a method that selects, it has no importance, needs_calibration, scores, selection_bounds;",
        ),
    ],
)
def test_what_a_target_does_not_take_is_said_with_its_key(config, said):
    assert said in refusal(method_of, config)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task.limits.train=x", "task.limits.train=x: expected a whole number or null"),
        ("task.limits.train=true", "task.limits.train=true: expected a whole number or null"),
        ("task.limits=5", "task.limits=5: expected a mapping"),
        ("task.max_length=true", "task.max_length=true: expected a whole number"),
    ],
)
def test_wrong_values_of_a_task_name_their_key(override, said):
    task = compose(["task=text_classification", override]).task
    assert said in refusal(instantiated, "task", task, Task)


def test_text_that_hydra_cannot_read_is_shown_with_its_quotes(capsys):
    said = refused(capsys, "run", "task=prompt_response", "task.prompt=Q: {prompt}")
    assert "task.prompt=Q: {prompt}" in said and """'task.prompt="Q: {prompt}"'""" in said
    quoted = 'task.prompt="Q: {prompt}"'
    assert compose(["task=prompt_response", quoted]).task.prompt == "Q: {prompt}"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("store=2024", "store", "2024"),
        ("experiment_name=1e3", "experiment_name", "1e3"),
        ("model.source=007", "model.source", "007"),
        ("model.revision=12e4567", "model.revision", "12e4567"),
        ("task.labels=[1.1,1.10,true]", "task.labels", ["1.1", "1.10", "true"]),
        ("task.columns.text=0", "task.columns.text", "0"),
        ("model.revision=null", "model.revision", None),
        ("trainer.learning_rate=1e-3", "trainer.learning_rate", 1e-3),
    ],
)
def test_text_stays_as_it_was_typed(override, key, value):
    config = OmegaConf.to_container(compose(["task=text_classification", override]))
    for part in key.split("."):
        config = config[part]
    assert config == value and type(config) is type(value)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nope"],
        ["run", "--nope"],
        ["plan", "--card", "x"],
        ["export", "x", "--to", "y"],
        ["compare", "a"],
        ["compare", "x" * 300, "y" * 300],
        ["export", "x" * 300, "--to", "lora"],
        ["export", "a", "--to", "lora", "--out", "x" * 300],
        ["report", "memory", "x" * 300],
        ["runs", "--store", "x" * 300],
        ["report", "--store", "x" * 300],
        ["report", "--store", ""],
        ["report", "--out", ""],
        ["runs", "--store", " "],
        ["runs", "--store", ".", "--experiment", ""],
        ["export", "a", "--to", "lora", "--out", ""],
        ["tune", "a\nb"],
        ["sweep", "seed=1,x"],
        ["sweep", "+model.load_in_4bit=true", "seed=1,2"],
    ],
)
def test_a_wrong_command_line_is_one_line_and_leaves_nothing(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_sweep_puts_back_what_an_earlier_one_wrote(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "multirun.yaml").write_text("earlier")
    refused(capsys, "sweep", "seed=1,x")
    assert (tmp_path / "runs" / "multirun.yaml").read_text() == "earlier"


def test_a_message_is_one_printable_line_of_bounded_length():
    assert one_line("a\nb\x1b[31m\u202ec") == r"a\nb\x1b[31m\u202ec"
    assert len(one_line("x" * 10**6)) < 4000
