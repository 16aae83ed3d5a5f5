"""How long a plan's texts are: stated, the data's own, or assumed, and which of them is said."""

from pathlib import Path

import pytest
from planning import SMALL
from task_tools import words
from tiny import tiny_bert

from rowsft.config.compose import compose
from rowsft.config.instantiate import instantiated
from rowsft.config.settings import trainer_settings
from rowsft.errors import UserError
from rowsft.plan import plan
from rowsft.plan.lengths import of_data, stated
from rowsft.tasks import Task

CAUSAL = ["model=smollm2_135m", "task=prompt_response", "method=lora", "trainer.batch_size=2", "task.max_length=64"]


def planned_for(overrides, tokens=None, answer=None):
    config = compose(overrides)
    lengths = stated(instantiated("task", config.task, Task), tokens, answer)
    return plan(config, trainer_settings(config), lengths=lengths)


def test_a_stated_answer_keeps_its_logits_alone():
    whole, short = planned_for(CAUSAL), planned_for(CAUSAL, answer=7)
    vocabulary, batch = 49_152, 2
    # At the least the logits in 32 bit of all other tokens.
    assert whole.peak_bytes - short.peak_bytes > batch * (64 - 8) * vocabulary * 4
    assert short.evaluation_bytes < whole.evaluation_bytes
    assert "7 of them its response, as stated" in short.run.assumptions[0]
    assert not any("any of an example's tokens" in said for said in short.run.assumptions)


def test_a_stated_length_is_planned_as_a_task_of_that_length():
    half = planned_for(CAUSAL, tokens=32)
    same = planned_for([*CAUSAL, "task.max_length=32"])
    assert (half.peak_bytes, half.evaluation_bytes) == (same.peak_bytes, same.evaluation_bytes)


@pytest.mark.parametrize(
    ("overrides", "tokens", "answer", "message"),
    [
        (CAUSAL, 1, None, r"--length 1: expected 2 to task\.max_length=64 tokens"),
        (CAUSAL, 65, None, r"--length 65: expected 2 to task\.max_length=64"),
        (CAUSAL, None, 0, r"--answer 0: expected 1 to 63 of an example's 64 tokens"),
        (CAUSAL, 20, 20, r"--answer 20: expected 1 to 19 of an example's 20 tokens"),
        (SMALL, None, 3, r"--answer 3: task=sentiment has labels and no answers"),
    ],
)
def test_lengths_that_no_example_has_are_refused(overrides, tokens, answer, message):
    with pytest.raises(UserError, match=message):
        planned_for(overrides, tokens, answer)


def test_what_would_have_to_be_fetched_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("ROWSFT_ASSETS", str(tmp_path))
    lengths = of_data(compose(SMALL))
    assert (lengths.source, lengths.tokens, lengths.answer) == ("assumed", 8, None)
    assert "task.max_length=8 tokens (package:minilm is not fetched)" in lengths.description
    assert not list(tmp_path.iterdir())


def own(folder: Path) -> list[str]:
    """Overrides of a model folder with a tokenizer, and texts for it."""
    tiny_bert(num_labels=2).save_pretrained(folder)
    words().save_pretrained(folder)
    (folder / "texts.csv").write_text("text,label\n" + "".join(f"a film {i},{'no' * (i % 2)}n\n" for i in range(30)))
    return [
        "model=bert_base",
        f"model.source={folder}",
        "task=text_classification",
        f"task.data.path={folder}/texts.csv",
    ]


def test_a_damaged_tokenizer_is_an_error_that_names_its_file(tmp_path):
    overrides = own(tmp_path)
    assert of_data(compose(overrides)).source == "data"
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(UserError, match=r"model\.source=.*cannot be loaded .*check its tokenizer\.json"):
        of_data(compose(overrides))


def test_a_folder_without_a_tokenizer_is_planned_at_the_most_that_the_task_allows(tmp_path):
    overrides = own(tmp_path)
    for file in tmp_path.glob("*token*"):
        file.unlink()
    lengths = of_data(compose(overrides))
    assert lengths.source == "assumed" and "the tokenizer is not at hand" in lengths.description
