"""What a model is told about padding does not change what it computes, neither now nor after it is saved."""

import torch
import transformers
from families import ENCODER
from omegaconf import OmegaConf
from task_tools import words
from tiny import build

from rowsft.models.checkpoint import write_checkpoint
from rowsft.models.loading import load
from rowsft.tasks.heads import SEQUENCE_CLASSIFICATION, label_settings


def test_positions_that_count_from_the_padding_stay_where_they_are(tmp_path):
    """RoBERTa's first position follows its own padding, whichever token the tokenizer pads with."""
    settings = {**ENCODER, "num_hidden_layers": 1, "max_position_embeddings": 34, "pad_token_id": 1}
    model_class = transformers.RobertaForSequenceClassification
    model = build(model_class, transformers.RobertaConfig(**settings), torch.float32, seed=0)
    tokenizer = words()
    assert tokenizer.pad_token_id == 0
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = {"name": "tiny", "source": str(tmp_path / "base"), "revision": None, "dtype": "float32"}
    loaded = load(
        OmegaConf.create({**config, "head_modules": ["classifier"]}), SEQUENCE_CLASSIFICATION, label_settings(3)
    )
    write_checkpoint(loaded.model, loaded.tokenizer, ["no", "yes", "both"], tmp_path / "saved")
    ids = torch.randint(5, 20, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(ids).logits
        after = model_class.from_pretrained(tmp_path / "saved")(ids).logits
    torch.testing.assert_close(after, before)
