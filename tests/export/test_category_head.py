"""The category head as a graph: calibrated probabilities, divergence and threshold of the way that is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.special import softmax
from torch.nn import functional as F

from export.onnx_graphs import GraphSpec, ServedCategoryHead, export_onnx
from models.category_head import CategoryHead, CategoryHeadConfig
from training.labels import neighbour_semantic, neighbours_of_similarities

CLASSES, WIDTH, ROWS = 6, 8, 9
TEMPERATURES, SURE_FROM = (0.5, 2.0, 0.8), (0.9, 0.6, 2.0)
WAYS = ((True, True), (True, False), (False, True))


@pytest.fixture(scope="module")
def served() -> ServedCategoryHead:
    torch.manual_seed(0)
    head = CategoryHead(CategoryHeadConfig(embed_dim=WIDTH, num_classes=CLASSES, hidden_dim=16)).eval()
    with torch.no_grad():
        head.mlp[-1].weight *= 8
        head.sure_from.copy_(torch.tensor(SURE_FROM))
    vectors = F.normalize(torch.rand(CLASSES, 3), dim=1)
    similarities = vectors @ vectors.T
    similarities.fill_diagonal_(1.0)
    soft = neighbour_semantic(neighbours_of_similarities(similarities, k=3), "share")
    return ServedCategoryHead(head, soft, top_k=4)


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    """Rows asked in all three ways in turn."""
    image, text = (F.normalize(torch.randn(ROWS, WIDTH), dim=1) for _ in "it")
    marks = torch.tensor([WAYS[row % 3] for row in range(ROWS)])
    return {
        "image_embeds": image,
        "text_embeds": text,
        "image_present": marks[:, :1].clone(),
        "text_present": marks[:, 1:].clone(),
    }


@pytest.fixture(scope="module")
def answers(
    served: ServedCategoryHead, inputs: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    with torch.no_grad():
        served.head.temperature.copy_(torch.tensor(TEMPERATURES))
    path: Path = tmp_path_factory.mktemp("graph") / "head.onnx"
    outputs = ["category_id", "probability", "neighbour_kl", "class_probability", "sure_from"]
    export_onnx(GraphSpec("category_head", served, inputs, outputs), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(outputs, {name: tensor.numpy() for name, tensor in inputs.items()})
    return dict(zip(outputs, found, strict=True))


def honest(served: ServedCategoryHead, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """Probabilities [B, C] written out in float64: each row's logits by the temperature of its way."""
    with torch.no_grad():
        served.head.temperature.fill_(1)
        logits = served.head(*inputs.values()).double().numpy()
        served.head.temperature.copy_(torch.tensor(TEMPERATURES))
    return softmax(logits / np.array([[TEMPERATURES[row % 3]] for row in range(ROWS)]), axis=1)


def test_probabilities_are_those_of_pytorch_at_the_temperature_of_the_way(
    served: ServedCategoryHead, inputs: dict[str, torch.Tensor], answers: dict[str, np.ndarray]
) -> None:
    expected = honest(served, inputs)
    np.testing.assert_allclose(answers["class_probability"], expected, atol=1e-5)
    ranked = -np.sort(-expected, axis=1)[:, :4]
    np.testing.assert_allclose(answers["probability"], ranked, atol=1e-5)
    np.testing.assert_array_equal(answers["category_id"][:, 0], expected.argmax(1))


def test_every_way_says_from_where_it_is_sure(answers: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(answers["sure_from"][:, 0], [SURE_FROM[row % 3] for row in range(ROWS)])
