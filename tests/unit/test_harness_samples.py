"""What is kept of the harness's examples."""

import json

import numpy as np
import torch

from rowsft.harness.samples import by_document


def sample(number, filtered, **metrics):
    about = {"doc_id": number, "doc_hash": f"{number}" * 64, "filter": filtered, "metrics": list(metrics)}
    return about | {"doc": {"q": "a question"}, "arguments": [["a prompt"]], "resps": [["an answer"]]} | metrics


def test_a_document_is_one_line_with_the_metrics_of_all_filters_and_no_text():
    samples = [
        sample(filtered="strict", number=10, exact_match=np.float64(0)),
        sample(filtered="strict", number=2, exact_match=np.float64(1)),
        sample(filtered="loose", number=2, exact_match=True),
        sample(filtered="loose", number=10, exact_match=torch.tensor(0.25)),
    ]
    assert by_document(samples) == [
        {"id": 2, "doc": "2" * 16, "exact_match,strict": 1, "exact_match,loose": 1},
        {"id": 10, "doc": "1010101010101010", "exact_match,strict": 0, "exact_match,loose": 0.25},
    ]


def test_pairs_of_numbers_are_kept_and_all_else_is_not():
    (line,) = by_document(
        [
            sample(
                0,
                "none",
                f1=(1, np.int64(0)),
                word_perplexity=(-12.5, 7),
                bleu=("a", "b"),
                brier_score=(1, np.array([0.5, 0.5])),
                said=np.str_("words"),
                nothing=None,
            )
        ]
    )
    assert line == {"id": 0, "doc": "0" * 16, "f1,none": [1, 0], "word_perplexity,none": [-12.5, 7]}
    assert json.loads(json.dumps(line)) == line
