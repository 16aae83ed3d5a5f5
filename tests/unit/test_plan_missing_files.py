"""A plan names the files that a run would look for in vain."""

from planning import planned

from rowsft.config.compose import compose
from rowsft.plan.missing_files import missing_files

MODEL = "model=smollm2_135m"


def test_files_that_are_not_here_are_named_each_with_its_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.csv").write_text("text,label\n")
    (tmp_path / "mnli").mkdir()
    ends, asks = ": no such file or folder here; a run ends there", ": no such file or folder here; a run asks the hub"
    for overrides, expected in [
        (["task=text_classification"], []),
        (["task=text_classification", "task.data.path=here.csv"], []),
        (["task=text_classification", "task.data.path=mnli"], []),
        (["task=text_classification", "task.data.path=org/name"], []),
        (["task=text_classification", "task.data.path=./mlni"], [f"task.data.path=./mlni{ends}"]),
        (["task=text_classification", "task.data.path=mlni"], [f"task.data.path=mlni{asks} for it"]),
        (
            ["task=text_classification", "task.data.train_path=here.csv", "task.data.test_path=~/gone.csv"],
            [f"task.data.test_path=~/gone.csv{ends}"],
        ),
        (["task=images/folder", "task.data.path=/no/pictures"], [f"task.data.path=/no/pictures{ends}"]),
        (
            ["task=commonsense/mix", MODEL, "task.tasks.piqa.data.path=./piqa", "task.tasks.boolq=null"],
            [f"task.tasks.piqa.data.path=./piqa{ends}"],
        ),
        (["task=gsm8k", MODEL, "trainer.forgetting.path=package:python_reference"], []),
        (["task=gsm8k", MODEL, "trainer.forgetting.path=book.txt"], [f"trainer.forgetting.path=book.txt{ends}"]),
    ]:
        assert missing_files(compose(overrides)) == expected, overrides


def test_the_plan_says_it(tmp_path):
    gone = f"{tmp_path}/gone.csv"
    overrides = ["task=text_classification", f"task.data.path={gone}", "model=minilm", "trainer.device=cpu"]
    made = planned(*overrides, "task.max_length=8", "trainer.batch_size=2", "method=head")
    assert f"task.data.path={gone}: no such file or folder here; a run ends there" in made.run.assumptions
