"""Scoring with recomputed blocks: the same scores, in the memory of a training step that recomputes."""

import pytest
import torch
from planning import planned
from tiny import causal_batch, tiny_llama
from transformers import OPTConfig, OPTForCausalLM

from rowsft.importance.recomputing import at_once, recomputed_blocks, recomputing
from rowsft.importance.registry import Context, score_layers

pytestmark = pytest.mark.whole

METRICS = ["taylor", "grad2", "taylor_row", "fisher", "taylor2", "wanda"]


def tiny_opt():
    """Its layers draw dropout by their own mode, and read positions off the mask."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=16, max_position_embeddings=64, dropout=0.3)).train()


def linears(model):
    parts = model.named_modules()
    return {name: part for name, part in parts if isinstance(part, torch.nn.Linear) and "head" not in name}


@pytest.mark.parametrize("importance", METRICS)
@pytest.mark.parametrize("make", [tiny_llama, tiny_opt])
def test_the_scores_are_the_same(make, importance):
    model = make()
    batches = [causal_batch(), causal_batch()]
    plain = score_layers(linears(model), importance, Context(model, batches), ("rows", "columns"))
    with recomputing(model):
        assert len(recomputed_blocks(model)) == model.config.num_hidden_layers
        again = score_layers(linears(model), importance, Context(model, batches), ("rows", "columns"))
    for name, scores in plain.items():
        for axis, score in scores.items():
            assert torch.equal(score, again[name][axis]), (axis, name)
            assert score.abs().max() > 0


def test_the_model_comes_back_as_it_was():
    model = tiny_llama()
    before = {name: set(vars(part)) for name, part in model.named_modules()}
    cached = model.config.use_cache
    with pytest.raises(RuntimeError, match="boom"), recomputing(model):
        with at_once(model):
            assert all("forward" not in vars(block) for block in recomputed_blocks(model))
        assert all("forward" in vars(block) for block in recomputed_blocks(model))
        raise RuntimeError("boom")
    assert {name: set(vars(part)) for name, part in model.named_modules()} == before
    assert model.config.use_cache == cached
    assert recomputed_blocks(model) == []
    with recomputing(model, wanted=False):
        assert recomputed_blocks(model) == []


def test_a_forward_that_somebody_put_on_a_block_runs_and_stays():
    """As accelerate's hooks do, which move a block's weights to the device that it runs on."""
    model, calls = tiny_llama(), []
    block = model.model.layers[0]
    plain = block.forward

    def forward(*args, **kwargs):
        calls.append(1)
        return plain(*args, **kwargs)

    block.forward = forward
    with recomputing(model):
        score_layers(linears(model), "taylor", Context(model, [causal_batch()]))
        assert calls
        with at_once(model):
            assert block.forward is forward
    assert block.forward is forward


BLOCK_PARAMETERS = 218_103_808  # of Llama-3-8B's seven linear layers


@pytest.mark.parametrize("importance", ["taylor", "taylor2", "fisher", "taylor_row"])
@pytest.mark.parametrize(("batch", "length", "rows"), [(4, 512, 128), (1, 512, 8), (1, 2048, 32)])
def test_scoring_stays_under_a_training_step_that_recomputes(importance, batch, length, rows):
    """Above it by the wide gradients of one block at the most, where next to nothing is trained."""
    given = ["model=llama3_8b", "task=prompt_response", "trainer.gradient_checkpointing=true", "method=row_sft"]
    given += [f"trainer.batch_size={batch}", f"task.max_length={length}", f"budget.rows={rows}"]
    result = planned(*given, f"method.importance={importance}", "trainer.eval_batch_size=1")
    accumulators = {"taylor": 1, "taylor2": 2}.get(importance, 0)
    # And a gradient of a layer on its way, and the scores of all.
    most = result.peak_bytes + 4 * accumulators * BLOCK_PARAMETERS if rows < 128 else result.peak_bytes
    assert result.selection_bytes <= most
