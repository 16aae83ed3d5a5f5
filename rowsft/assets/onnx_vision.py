"""An exported vision transformer unpacked into an ordinary checkpoint folder of transformers."""

import json
import re
from pathlib import Path

from rowsft.errors import UserError

#: What the exporter has named itself: the two parts of the position embeddings, of the class token and of the patches.
_POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")
_LINEAR = re.compile(r"/backbone/(encoder/layer\.\d+/.*)/MatMul")
_CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 518,
    "layer_norm_eps": 1e-6,
    "use_mask_token": False,
    "dtype": "float32",
}
_PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_convert_rgb": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
_WEIGHTS = 222


def onnx_to_safetensors(path: Path, folder: Path) -> None:
    """Write model.safetensors, config.json and preprocessor_config.json of the ViT-S/14 in `path` to `folder`.

    The exporter has kept the names of biases and norms; the matrices of linear layers have lost theirs and stand
    transposed: each is found by the node that multiplies with it. Names are those of the published checkpoints of this
    architecture, which every version of transformers reads. Raises UserError where `onnx` is not installed.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise UserError(
            f"{path.name}: reading it needs onnx; install the images extra: pip install 'rowsft[images]'"
        ) from error
    from safetensors.numpy import save_file

    graph = onnx.load(str(path)).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name.removeprefix("backbone."): value for name, value in values.items() if name.startswith("backbone.")}
    for node in graph.node:
        layer = _LINEAR.fullmatch(node.name)
        if layer and node.input[1] in values:
            weights[f"{layer[1].replace('/', '.')}.weight"] = values[node.input[1]].T
    import numpy as np

    weights["embeddings.position_embeddings"] = np.concatenate([values[name] for name in _POSITIONS], axis=1)
    assert len(weights) == _WEIGHTS, f"{path.name}: {len(weights)} weights, expected {_WEIGHTS}"
    contiguous = {name: np.ascontiguousarray(value) for name, value in weights.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_CONFIG, indent=1))
    (folder / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR, indent=1))
