"""Classification: padding, evaluation against one example at a time, and the user's own tables."""

import json

import numpy as np
import pytest
import torch
from task_tools import words
from tiny import tiny_bert

from rowsft.errors import UserError
from rowsft.tasks.embedding import embed
from rowsft.tasks.stsb import Stsb
from rowsft.tasks.text_classification import TextClassification

TEXTS = ["a film that is fun", "a dull film", "the cat will sleep in the sun", "bad and slow", "happy", "good film"]
LABELS = ["up", "down", "up", "down", "up", "down"]
COLUMNS = {"text": "text", "pair": None, "label": "label"}


def rows(count=30):
    return [{"text": f"{TEXTS[i % 6]} {i}", "label": LABELS[i % 6]} for i in range(count)]


def write(path, table):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in table))
    elif path.suffix == ".json":
        path.write_text(json.dumps(table))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        path.write_text("\n".join([mark.join(table[0]), *(mark.join(map(str, row.values())) for row in table)]))
    return str(path)


def task(data, **changes):
    settings = {"name": "own", "max_length": 16, "columns": COLUMNS, "primary_metric": "accuracy"}
    return TextClassification(data={"validation": 0.2, "test": 0.2, **data}, **{**settings, **changes})


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl"])
def test_every_format_gives_the_same_splits(tmp_path, ending):
    built = task({"path": write(tmp_path / f"all.{ending}", rows())})
    splits = built.splits()
    assert {name: len(part) for name, part in splits.items()} == {"train": 18, "validation": 6, "test": 6}
    assert (
        built.num_labels == 2
        and built.classes == ["down", "up"]
        and built.head_settings() == {"num_labels": 2, "problem_type": "single_label_classification"}
    )
    found = {row["id"]: (row["text"], row["label"]) for part in splits.values() for row in part}
    expected = {f"row-{i}": (row["text"], int(row["label"] == "up")) for i, row in enumerate(rows())}
    assert found == expected
    assert set(built.about()["sha256"]) == {"path"} and built.about()["sizes"]["test"] == 6


def test_given_files_are_the_splits_and_the_missing_one_is_cut_off_train(tmp_path):
    train, test = write(tmp_path / "a.csv", rows()), write(tmp_path / "b.csv", rows(4))
    splits = task({"train_path": train, "test_path": test}).splits()
    assert {name: len(part) for name, part in splits.items()} == {"train": 24, "validation": 6, "test": 4}
    assert [row["id"] for row in splits["test"]] == ["test-0", "test-1", "test-2", "test-3"]


def test_equal_texts_stay_in_one_split(tmp_path):
    table = [{"text": f"text {i // 3}", "label": LABELS[i % 6]} for i in range(60)]
    splits = task({"path": write(tmp_path / "a.csv", table)}).splits()
    texts = [{row["text"] for row in part} for part in splits.values()]
    assert sum(map(len, texts)) == 20


def test_the_word_NA_is_a_text(tmp_path):
    table = [
        {"text": word, "label": label} for word, label in zip(["NA", "null", "x", "y", "z", "w"], LABELS, strict=True)
    ]
    splits = task({"path": write(tmp_path / "a.csv", table)}).splits()
    assert {"NA", "null"} <= {row["text"] for part in splits.values() for row in part}


def test_numeric_labels_are_sorted_as_numbers_and_labels_fix_the_order(tmp_path):
    path = write(tmp_path / "a.csv", [{"text": f"t{i}", "label": [10, 9, 2][i % 3]} for i in range(30)])
    assert task({"path": path}).classes == ["2", "9", "10"]
    fixed = task({"path": path}, labels=[10, 9, 2, 1])
    assert fixed.num_labels == 4 and {row["label"] for row in fixed.splits()["train"]} <= {0, 1, 2}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"columns": {**COLUMNS, "text": "sentence"}}, "a.csv: no column sentence; it has text, label"),
        ({"columns": {**COLUMNS, "pair": "other"}}, "no column other"),
        ({"data": {"path": "nowhere/a.csv"}}, "task.data.path=nowhere/a.csv: no such file"),
        ({"data": {}}, "give one of them"),
        ({"data": {"validation": 0}}, "task.data.validation=0: expected a share"),
        (
            {"data": {"validation": 0.6, "test": 0.5}},
            "task.data.validation=0.6, task.data.test=0.5: nothing is left to train on",
        ),
        ({"labels": ["up", "sideways"]}, "is not among the classes up, sideways"),
        (
            {"regression": True, "primary_metric": "pearson", "extra_metrics": []},
            "a.csv, line 2: label 'up' in column label is not a number; correct it or drop the row (for classes set",
        ),
        ({"primary_metric": "rouge"}, "metric rouge"),
        ({"max_length": 1}, "task.max_length=1"),
    ],
)
def test_mistakes_are_said_in_one_line(tmp_path, change, said):
    data = {"path": write(tmp_path / "a.csv", rows())}
    override = change.pop("data", None)
    data = data if override is None else {**({} if not override or "path" in override else data), **override}
    with pytest.raises(UserError) as error:
        task(data, **change).splits()
    assert said in str(error.value) and "\n" not in str(error.value)


def test_more_mistakes_in_files(tmp_path):
    other = write(tmp_path / "b.csv", [{"text": "new", "label": "sideways"}])
    with pytest.raises(UserError, match="b.csv, line 2: label sideways is not among the classes down, up"):
        task({"train_path": write(tmp_path / "a.csv", rows()), "test_path": other}).splits()
    gap = write(tmp_path / "gap.jsonl", [*rows(3), {"text": "no label", "label": None}])
    with pytest.raises(UserError, match="gap.jsonl, line 4: no value in column label"):
        task({"path": gap}).splits()
    (tmp_path / "empty.csv").write_text("text,label\n")
    with pytest.raises(UserError, match="empty.csv: no rows"):
        task({"path": str(tmp_path / "empty.csv")}).splits()
    (tmp_path / "broken.json").write_text('[{"text": "a", ')
    with pytest.raises(UserError, match="broken.json, element 1: cannot be read as JSON"):
        task({"path": str(tmp_path / "broken.json")}).splits()
    with pytest.raises(UserError, match="unknown ending .xlsx"):
        (tmp_path / "a.xlsx").write_text("")
        task({"path": str(tmp_path / "a.xlsx")}).splits()
    one = write(tmp_path / "one.csv", [{"text": f"t{i}", "label": "same"} for i in range(9)])
    with pytest.raises(UserError, match="1 class in the training data"):
        _ = task({"path": one}).num_labels


def test_padding_is_masked_and_pairs_carry_token_types():
    tokenizer = words()
    built = Stsb("stsb", 32)
    examples = [
        {"id": "0", "text": "a film", "pair": "the cat", "label": 2.5},
        {"id": "1", "text": "good", "pair": "bad", "label": 0.0},
    ]
    batch = built.collator(tokenizer)(built.encode(examples, tokenizer))
    assert batch["labels"].dtype == torch.float32 and batch["labels"].tolist() == [2.5, 0.0]
    assert batch["attention_mask"].tolist() == [[1] * 7, [1] * 5 + [0] * 2]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0]]
    assert (batch["input_ids"][1, 5:] == tokenizer.pad_token_id).all()


def test_evaluation_equals_one_example_at_a_time(tmp_path):
    built = task({"path": write(tmp_path / "a.csv", rows())}, extra_metrics=["f1"])
    tokenizer, model = words(), tiny_bert(num_labels=2)
    model.train()
    examples = built.splits()["test"]
    seen = []

    def progress(batches, total):
        seen.append(total)
        return batches

    result = built.evaluate(model, examples, tokenizer, batch_size=4, progress=progress)
    assert model.training and seen == [2]
    model.eval()
    logits = [model(**tokenizer(row["text"], return_tensors="pt")).logits[0].double() for row in examples]
    for row, prediction, own in zip(examples, result.predictions, logits, strict=True):
        assert prediction["id"] == row["id"] and prediction["label"] == row["label"]
        assert prediction["scores"] == pytest.approx(own.tolist(), abs=1e-5)
        assert prediction["prediction"] == own.argmax()
    right = [p["prediction"] == p["label"] for p in result.predictions]
    assert result.metrics["accuracy"] == pytest.approx(np.mean(right)) and "f1" in result.metrics
    labels = torch.tensor([row["label"] for row in examples])
    assert result.metrics["loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(torch.stack(logits), labels).item(), abs=1e-5
    )
    train = [row["label"] for row in built.splits()["train"]]
    majority = max(set(train), key=train.count)
    expected = np.mean([row["label"] == majority for row in examples])
    assert built.reference_metrics(model, examples, tokenizer) == {"majority_accuracy": pytest.approx(expected)}


def test_regression_predicts_the_number_itself(tmp_path):
    table = [{"text": row["text"], "label": i / 7} for i, row in enumerate(rows())]
    built = task({"path": write(tmp_path / "a.csv", table)}, regression=True, primary_metric="pearson")
    tokenizer, model = words(), tiny_bert(num_labels=1)
    assert built.head_settings() == {"num_labels": 1, "problem_type": "regression"}
    examples = built.splits()["test"]
    result = built.evaluate(model, examples, tokenizer, batch_size=3)
    values = [model(**tokenizer(row["text"], return_tensors="pt")).logits.item() for row in examples]
    assert [p["prediction"] for p in result.predictions] == pytest.approx(values, abs=1e-5)
    labels = [row["label"] for row in examples]
    assert result.metrics["pearson"] == pytest.approx(np.corrcoef(values, labels)[0, 1], abs=1e-4)
    assert result.metrics["loss"] == pytest.approx(np.mean((np.array(values) - labels) ** 2), rel=1e-4)


def test_embeddings_are_means_over_the_texts_own_tokens_and_the_cosine_is_the_zero_line():
    tokenizer, model = words(), tiny_bert()
    vectors = embed(model, TEXTS, tokenizer, 32)
    for text, vector in zip(TEXTS, vectors, strict=True):
        own = model.bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert vector == pytest.approx(own.tolist(), abs=1e-5)
    examples = [
        {"id": str(i), "text": a, "pair": b, "label": float(i)}
        for i, (a, b) in enumerate(zip(TEXTS, reversed(TEXTS), strict=True))
    ]
    a, b = vectors, vectors[::-1]
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    line = Stsb("stsb", 32).reference_metrics(model, examples, tokenizer)
    assert line["cosine_pearson"] == pytest.approx(np.corrcoef(cosines, range(6))[0, 1], abs=1e-4)
    assert set(line) == {"cosine_pearson", "cosine_spearman"}
