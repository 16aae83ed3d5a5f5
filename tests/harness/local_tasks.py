"""A task in the harness's own local form."""

import json
from pathlib import Path


def write_task(folder: Path, name: str, rows: list[dict], choices, text: str) -> None:
    """NAME.yaml and NAME.jsonl; choices: a template, or the same answers for each row."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = "aggregation: mean, higher_is_better: true"
    metrics = "".join(f"  - {{metric: {metric}, {how}}}\n" for metric in ("acc", "acc_norm"))
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: {folder / f'{name}.jsonl'}}}\n"
        f"output_type: multiple_choice\ntest_split: test\ndoc_to_text: {json.dumps(text)}\n"
        f"doc_to_choice: {json.dumps(choices)}\ndoc_to_target: label\nmetric_list:\n{metrics}"
        "metadata: {version: 1.5}\n"
    )
