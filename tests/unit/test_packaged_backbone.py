"""The packaged vision backbone is the exported graph: onnxruntime computes the same."""

import hashlib

import numpy as np
import pytest
import torch

from rowsft.assets import fetch

LAST = "/backbone/layernorm/Add_1_output_0"


def test_the_backbone_computes_what_the_graph_does(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs the images extra")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime, the reference, is not installed")
    from transformers import AutoImageProcessor, Dinov2Model

    from rowsft.assets.archive import extract
    from rowsft.assets.onnx_vision import onnx_to_safetensors

    asset = fetch.get("vits_focus")
    (tmp_path / "scratch").mkdir()
    download = fetch._download(asset, tmp_path / "scratch", progress=False)
    extract(download, dict(asset.members), tmp_path)
    path = tmp_path / asset.unpack
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith("198644e37de36674")
    onnx_to_safetensors(path, tmp_path)
    model, loading = Dinov2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values()) and model.num_parameters() == 22_056_192
    assert list(AutoImageProcessor.from_pretrained(tmp_path).image_mean) == [0.485, 0.456, 0.406]
    graph = onnx.load(str(path))
    graph.graph.output.append(onnx.helper.make_tensor_value_info(LAST, onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(graph.SerializeToString())
    pixels = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    (expected,) = session.run([LAST], {"input_image": pixels})
    with torch.no_grad():
        actual = model.eval()(torch.tensor(pixels)).last_hidden_state.numpy()
    # Values reach 8; square matrices that are transposed by mistake move them by 10 and more.
    assert np.abs(actual - expected).max() < 2e-4
