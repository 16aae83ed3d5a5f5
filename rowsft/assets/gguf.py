"""A GGUF checkpoint unpacked into an ordinary float32 checkpoint folder."""

from pathlib import Path


def gguf_to_safetensors(gguf: Path, folder: Path) -> None:
    """Write model.safetensors, config.json and the tokenizer's files of the causal LM in `gguf` to `folder`.

    The model that transformers loads from a GGUF file counts as quantised, and refuses to be saved or trained: its
    weights are copied into a clean model of the same class.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**place)
    config = loaded.config
    del config.quantization_config
    with torch.device("meta"):
        clean = type(loaded)(config)
    clean.load_state_dict(loaded.state_dict(), assign=True)
    clean.tie_weights()
    clean.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
