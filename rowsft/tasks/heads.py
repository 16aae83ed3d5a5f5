"""What stands on a model's body: the transformers classes that have it, and what plans and trainers must know of it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Head:
    """A kind of task head. `name` is its name in messages.

    model_class, processor_class: names of transformers' auto classes; the processor turns examples into what the model
    takes. peft_type, class_names: how a saved adapter names the head: PEFT's task type, and endings of model classes.
    fresh: a checkpoint may lack its weights, which the seed then draws, and every method trains it in full.
    answers: labels are tokens at the end of an example. normalises_by_tokens: the loss divides by the labelled tokens
    of a whole optimizer step when the forward is told their number (num_items_in_batch).
    """

    name: str
    model_class: str
    processor_class: str = "AutoTokenizer"
    peft_type: str | None = None
    class_names: tuple[str, ...] = ()
    fresh: bool = False
    answers: bool = False
    normalises_by_tokens: bool = False


CAUSAL_LM = Head(
    name="causal_lm",
    model_class="AutoModelForCausalLM",
    peft_type="CAUSAL_LM",
    class_names=("ForCausalLM", "LMHeadModel"),
    answers=True,
    normalises_by_tokens=True,
)
SEQUENCE_CLASSIFICATION = Head(
    name="sequence_classification",
    model_class="AutoModelForSequenceClassification",
    peft_type="SEQ_CLS",
    class_names=("ForSequenceClassification",),
    fresh=True,
)
IMAGE_CLASSIFICATION = Head(
    name="image_classification",
    model_class="AutoModelForImageClassification",
    processor_class="AutoImageProcessor",
    class_names=("ForImageClassification",),
    fresh=True,
)


def label_settings(num_labels: int) -> dict[str, Any]:
    """What a model's configuration is told of its labels; a single one is a number to be predicted."""
    return {
        "num_labels": num_labels,
        "problem_type": "regression" if num_labels == 1 else "single_label_classification",
    }
