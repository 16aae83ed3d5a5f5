"""The part of a record that holds what a run has forgotten of a general text."""

from dataclasses import dataclass

from rowsft.record.part import NOTHING, Count, Number, Part, Text

Numbers = dict[Text, Number | None]


@dataclass(frozen=True, kw_only=True)
class Forgetting(Part):
    """A general text under the untouched model (before) and the tuned one (after): the metrics of held-out loss.

    csd_rel: the sum over adapted layers and the text's tokens of the squared change of a layer's output by its changed
    weight, over that of the output itself, both on the untouched model's inputs; csd_rel_layers: of each layer alone.
    sha256: of the text's examples. tokens: those that were predicted.
    """

    source: Text | None = None
    sha256: Text | None = None
    examples: Count | None = None
    tokens: Count | None = None
    before: Numbers = NOTHING
    after: Numbers = NOTHING
    csd_rel: Number | None = None
    csd_rel_layers: Numbers = NOTHING
    seconds: Number | None = None
