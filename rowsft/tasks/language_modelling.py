"""Language modelling of running text, or of documents one after another: every token counts alike."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from rowsft.batch import IGNORED
from rowsft.errors import UserError, shortened
from rowsft.tasks import Evaluation, Progress, held_out, windows
from rowsft.tasks.answer_score import AnswerScore, token_scores
from rowsft.tasks.base import whole_number
from rowsft.tasks.causal import CausalTask, starts_words_with_a_space
from rowsft.tasks.evaluating import run_batches
from rowsft.tasks.local_data import Tables
from rowsft.tasks.reading import Table
from rowsft.tasks.running_text import pieces

DOCUMENTS = ("lines", "rows")


class _Stream(NamedTuple):
    """The tokens of examples one after another, and how many each has."""

    tokens: list[int]
    counts: list[int]


class LanguageModelling(CausalTask):
    """`column` holds the text. documents: "lines", where rows are the lines of one running text, which is cut at line
    ends into pieces of about 2 KiB; "rows", where every row is a document, which `separator` closes.

    Pieces or documents are the examples, so that a score of each can be compared between runs, whatever their
    tokenizers. Their tokens are joined in their order. Training cuts them into windows of `max_length` tokens without
    overlap (save one token of context where the tokenizer puts none before texts); evaluation moves its window on by
    `stride` tokens (None: half of max_length) and counts those alone that no window before has.

    Metrics: those of `held_out`, over all tokens, and `word_perplexity`, the exponential of the nats per word between
    blanks.
    """

    primary_metric = "loss"
    higher_is_better = False

    def __init__(
        self,
        name: str,
        max_length: int,
        data: Mapping[str, Any],
        column: str = "text",
        documents: str = "lines",
        separator: str = "\n",
        stride: int | None = None,
        limits: Mapping[str, int | None] | None = None,
    ):
        super().__init__(name, max_length, limits)
        if isinstance(column, bool) or not isinstance(column, str | int) or not str(column).strip():
            raise UserError(f"task.column={shortened(column)}: expected the name of a column")
        if not isinstance(documents, str) or documents not in DOCUMENTS:
            raise UserError(f"task.documents={shortened(documents)}: expected {' or '.join(DOCUMENTS)}")
        if not isinstance(separator, str):
            raise UserError(f"task.separator={shortened(separator)}: expected text, such as a line break")
        if stride is not None and whole_number("task.stride", stride, 1, " token") >= max_length:
            raise UserError(f"task.stride={stride}: expected less than task.max_length={max_length} tokens, or null")
        self.tables = Tables(data)
        self.column, self.documents, self.stride = str(column), documents, stride or max_length // 2
        self.separator = separator.replace("\\n", "\n")

    def _read(self) -> dict[str, list[dict]]:
        names = [self.column]
        tables = self.tables.read(names, names, pieces if self.documents == "lines" else None)
        return {split: self._texts(table) for split, table in tables.items()}

    def _texts(self, table: Table) -> list[dict]:
        """The examples of a table of pieces or of documents."""
        end = "" if self.documents == "lines" else self.separator
        rows = zip(table.ids(), table.columns[self.column], strict=True)
        return [{"id": id_, "text": text + end} for id_, text in rows]

    def _facts(self) -> dict[str, Any]:
        return self.tables.facts()

    def data_at_hand(self) -> bool:
        """Whether the files of `data` are here."""
        return self.tables.at_hand()

    def may_encode_nothing(self, tokenizer, /) -> bool:
        """False: windows have tokens, or there are none."""
        return False

    def _tokens(self, examples: list[dict], tokenizer) -> list[dict]:
        """The tokens of every example's text, without any that the tokenizer puts around."""
        texts = [example["text"] for example in examples]
        if starts_words_with_a_space(tokenizer, texts[0]):
            # Such a tokenizer puts a space before whatever it is given: a second one would be a token of its own.
            texts = [text.removeprefix(" ") for text in texts]
        ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        return [{"input_ids": each} for each in ids]

    def _stream(self, tokenised: list[dict], tokenizer) -> _Stream:
        ids = [each["input_ids"] for each in tokenised]
        stream = _Stream([token for each in ids for token in each], list(map(len, ids)))
        if len(stream.tokens) + len(windows.start_of(tokenizer).first) < 2:
            raise UserError(
                f"task {self.name}: {len(stream.tokens)} tokens of text; expected two or more; give more text"
            )
        return stream

    def encoding_settings(self) -> dict[str, Any]:
        """The most tokens of a window; separators are in the texts."""
        return {"max_length": self.max_length}

    def encode(self, examples: list[dict], tokenizer, /) -> list[dict]:
        """The windows of the examples' joined text: input_ids, and labels on what no window before has."""
        stream, start = self._stream(self._tokens(examples, tokenizer), tokenizer), windows.start_of(tokenizer)
        cut = windows.cut(len(stream.tokens), self.max_length, None, start)
        return [windows.encoded(window, stream.tokens, start) for window in cut]

    def evaluate(
        self, model, examples: list[dict], tokenizer, /, batch_size: int, progress: Progress = None
    ) -> Evaluation:
        """The metrics; a prediction is an example's mean token loss, beside its sums."""
        tokenised = self.kept_tokens("tokens", examples, tokenizer, lambda: self._tokens(examples, tokenizer))
        stream, start = self._stream(tokenised, tokenizer), windows.start_of(tokenizer)
        cut = windows.cut(len(stream.tokens), self.max_length, self.stride, start)
        encoded = [windows.encoded(window, stream.tokens, start) for window in cut]
        collate = self.collator(tokenizer, model)
        read = run_batches(model, encoded, collate, batch_size, progress, self.read_batch)
        scores = _by_example([token for window in read for token in window], stream)
        sizes = [{"response_bytes": len(example["text"].encode())} for example in examples]
        words = [len(example["text"].split()) for example in examples]
        rows = [
            {
                "id": example["id"],
                "prediction": -score.log_likelihood / max(score.tokens, 1),
                "label": None,
                "scores": [score.log_likelihood],
                **held_out.fields(size, score),
                "words": count,
            }
            for example, score, size, count in zip(examples, scores, sizes, words, strict=True)
        ]
        metrics = held_out.metrics(sizes, scores)
        nats = -sum(score.log_likelihood for score in scores)
        return Evaluation({**metrics, "word_perplexity": math.exp(min(nats / max(sum(words), 1), 700.0))}, rows)

    @staticmethod
    def read_batch(  # type: ignore[override]  # what calls for the parent's, score_answers, is not used here
        output, batch: dict[str, Any]
    ) -> list[list[tuple[float, bool]]]:
        """Of every window, (log-probability, whether it was the likeliest) of each token that it predicts."""
        labels = batch["labels"][:, 1:]
        values, matches = token_scores(output.logits[:, :-1], labels)
        counts = (labels != IGNORED).sum(1).tolist()
        return [
            list(zip(row[len(row) - count :], hits[len(hits) - count :], strict=True))
            for row, hits, count in zip(values.tolist(), matches.tolist(), counts, strict=True)
        ]

    def reference_metrics(self, model, examples: list[dict], tokenizer, /) -> dict[str, float]:
        """None: the untrained model's own loss is what the method `none` reports."""
        return {}


def _by_example(tokens: list[tuple[float, bool]], stream: _Stream) -> list[AnswerScore]:
    """The score of every example out of those of the stream's tokens; the first of all may have none."""
    scored = [None] * (len(stream.tokens) - len(tokens)) + tokens
    scores, at = [], 0
    for count in stream.counts:
        own = [token for token in scored[at : at + count] if token]
        scores.append(AnswerScore(math.fsum(value for value, _ in own), len(own), sum(hit for _, hit in own)))
        at += count
    return scores
