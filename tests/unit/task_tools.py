"""Small tokenizers whose vocabulary fits the tiny models."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
CORPUS = [
    "a film that is fun and good",
    "a dull film that is bad and slow",
    "what will the cat want to do next? the cat will sleep in the sun",
    "how would you describe the dog? the dog is happy to be here",
]


def bpe(metaspace: bool = False, bos: bool = False, vocabulary: int = 100) -> PreTrainedTokenizerFast:
    """Character BPE whose tokens cross words, or Llama-2's kind (`metaspace`); ids below 128."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    alphabet = list("abcdefghijklmnopqrstuvwxyz ABCQ?.:,'\n")
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS * 5, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def words() -> PreTrainedTokenizerFast:
    """One token a known word, BERT's template of pairs with token types."""
    known = sorted({word for line in CORPUS for word in line.replace("?", " ?").split()})
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, "[CLS]", "[SEP]", *known])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
