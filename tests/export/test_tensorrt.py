"""TensorRT plans: every graph parses and builds without a GPU, plans say what for, and the wrong ones are refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from transformers import BertConfig, ViTConfig

from export.categorize import categorizer_system
from export.float_types import BFLOAT16, FLOAT16, lower_floats
from export.match_colours import colour_matcher_system
from export.onnx_graphs import ExportError, GraphSpec, export_onnx, save_onnx
from export.precision import Runtime
from export.quantization import Quantization, Quantizer
from export.system import ExportTarget
from export.tensorrt import PlanBuilder, build_plan, plan_builder, plan_file
from models.encoders import ImageEncoder, ImageEncoderConfig, TextEncoder, TextEncoderConfig
from repository.plans import TENSORRT, TENSORRT_RTX, Gpu, PlanRecord, refusal
from training.categorize import CATEGORIZER
from training.match_colours import COLOUR_MATCHER

ADA = "8.9"


@pytest.fixture(scope="module")
def builder() -> PlanBuilder:
    pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx-cu13")
    return plan_builder([ADA])


def small_text_graph() -> GraphSpec:
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    encoder = TextEncoder(TextEncoderConfig(backbone=config.to_dict(), projection_dim=16, max_length=8))
    tokens = torch.ones(2, 8, dtype=torch.int64)
    return GraphSpec("text_encoder", encoder, {"input_ids": tokens, "attention_mask": tokens.clone()}, ["text_embeds"])


def small_image_graph() -> GraphSpec:
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    encoder = ImageEncoder(ImageEncoderConfig(backbone=config.to_dict(), projection_dim=16, height=32, width=32))
    pixels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    return GraphSpec("image_encoder", encoder, {"pixel_values": pixels}, ["image_embeds"])


@pytest.mark.parametrize("make", [small_text_graph, small_image_graph])
def test_every_precision_of_an_encoder_builds(builder: PlanBuilder, tmp_path: Path, make: object) -> None:
    torch.manual_seed(0)
    graph: GraphSpec = make()  # type: ignore[operator]
    source = tmp_path / "fp32.onnx"
    export_onnx(graph, source)
    for name, element_type in (("fp16", FLOAT16), ("bf16", BFLOAT16)):
        save_onnx(lower_floats(onnx.load(source), element_type, set()), tmp_path / f"{name}.onnx")
    inputs = [{name: torch.randint(0, 40, tensor.shape).to(tensor.dtype) for name, tensor in graph.inputs.items()}]
    for name, method in (("int8", Quantization.TENSORRT_INT8), ("fp8", Quantization.TENSORRT_FP8)):
        (tmp_path / name).mkdir()
        Quantizer(source, method, inputs, tmp_path / name).write(tmp_path / f"{name}.onnx")
    for path in sorted(tmp_path.glob("*.onnx")):
        plan = path.with_suffix(".plan")
        record = build_plan(builder, ADA, path, plan, batch_sizes=(1, 2, 4), precision=path.stem)
        assert plan.stat().st_size > 1000
        assert PlanRecord.load(plan) == record
        assert record.compute_capability == ADA
        assert not record.executed


def test_every_graph_of_every_system_builds(
    builder: PlanBuilder, categorize_bundle: Path, colour_bundle: Path, tmp_path: Path
) -> None:
    categorizer = categorizer_system(
        CATEGORIZER.load(categorize_bundle), categorize_bundle, ExportTarget(Runtime.TENSORRT)
    )
    matcher = colour_matcher_system(COLOUR_MATCHER.load(colour_bundle), colour_bundle, ExportTarget(Runtime.TENSORRT))
    for graph, axes in [
        *((graph, categorizer.axis_ranges) for graph in categorizer.graphs),
        *((graph, matcher.axis_ranges) for graph in matcher.graphs),
    ]:
        path = tmp_path / f"{graph.name}.onnx"
        export_onnx(replace(graph, names=None), path)  # words are looked up on the CPU: TensorRT has no strings
        if not graph.float32_only:
            save_onnx(lower_floats(onnx.load(path), FLOAT16, set()), path)
        plan = path.with_suffix(".plan")
        build_plan(builder, ADA, path, plan, batch_sizes=(1, 2, 4), precision="fp16", axis_ranges=axes)
        assert plan.stat().st_size > 1000, graph.name


@pytest.mark.skipif(not os.environ.get("SHELFWISE_FULL_SIZE"), reason="minutes of work; set SHELFWISE_FULL_SIZE=1")
@pytest.mark.parametrize("size", ["ViT-B/32", "BERT-base"])
def test_encoders_of_full_size_build(builder: PlanBuilder, tmp_path: Path, size: str) -> None:
    torch.manual_seed(0)
    if size == "ViT-B/32":
        vision = ViTConfig(image_size=224, patch_size=32).to_dict()
        image = ImageEncoder(ImageEncoderConfig(backbone=vision, projection_dim=512, height=224, width=224))
        pixels = torch.zeros(2, 224, 224, 3, dtype=torch.uint8)
        graph = GraphSpec("image_encoder", image, {"pixel_values": pixels}, ["image_embeds"])
    else:
        text = TextEncoder(TextEncoderConfig(backbone=BertConfig().to_dict(), projection_dim=512, max_length=77))
        tokens = torch.ones(2, 77, dtype=torch.int64)
        inputs = {"input_ids": tokens, "attention_mask": tokens.clone()}
        graph = GraphSpec("text_encoder", text, inputs, ["text_embeds"])
    source = tmp_path / "fp32.onnx"
    export_onnx(graph, source)
    save_onnx(lower_floats(onnx.load(source), FLOAT16, set()), tmp_path / "fp16.onnx")
    for path in sorted(tmp_path.glob("*.onnx")):
        record = build_plan(builder, ADA, path, path.with_suffix(".plan"), batch_sizes=(1, 8, 32), precision=path.stem)
        assert record.compute_capability == ADA
        assert path.with_suffix(".plan").stat().st_size > 80e6


def test_a_graph_that_tensorrt_cannot_build_is_refused_in_its_words(builder: PlanBuilder, tmp_path: Path) -> None:
    class Dated(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    path = tmp_path / "model.onnx"
    export_onnx(GraphSpec("dated", Dated(), {"x": torch.zeros(2, 3)}, ["y"]), path)
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, path)
    with pytest.raises(ExportError, match=r"cannot parse the graph: .*NoSuchOperator"):
        build_plan(builder, ADA, path, tmp_path / "model.plan", batch_sizes=(1, 2, 4), precision="fp32")
    path.write_bytes(b"corrupt")
    with pytest.raises(ExportError, match="cannot parse the graph"):
        build_plan(builder, ADA, path, tmp_path / "model.plan", batch_sizes=(1, 2, 4), precision="fp32")
    assert not (tmp_path / "model.plan").exists()


def test_generations_that_the_builder_does_not_know_are_refused(builder: PlanBuilder) -> None:
    with pytest.raises(ExportError, match=r"does not build for 9\.0; it knows 7\.5, 8\.0"):
        plan_builder(["9.0"])
    both = plan_builder([ADA, "12.0"])
    assert [plan_file(both, name) for name in both.compute_capabilities] == ["model.sm89.plan", "model.sm120.plan"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU to build for")
def test_building_for_this_machine_needs_a_gpu() -> None:
    with pytest.raises(ExportError, match="name the GPU generations to build for with --gpu"):
        plan_builder()


def saved_plan(folder: Path, builder: str, compute_capability: str) -> Path:
    plan = folder / "model.plan"
    plan.write_bytes(b"plan")
    PlanRecord(builder, "10.5", compute_capability, False, "fp16", (1, 8, 32), True).save(plan)
    return plan


@pytest.mark.parametrize(
    ("builder_name", "capability", "machine", "sentence"),
    [
        (TENSORRT, ADA, [], "this machine has no NVIDIA GPU"),
        (TENSORRT, ADA, [Gpu("NVIDIA A100", "8.0")], "NVIDIA A100 has compute capability 8.0"),
        (TENSORRT_RTX, ADA, [Gpu("NVIDIA L4", ADA)], "Triton's tensorrt backend runs plans of tensorrt only"),
        (TENSORRT, ADA, [Gpu("NVIDIA L4", ADA)], ""),
    ],
)
def test_a_plan_is_refused_with_what_it_was_built_for(
    tmp_path: Path, builder_name: str, capability: str, machine: list[Gpu], sentence: str
) -> None:
    reason = refusal([saved_plan(tmp_path, builder_name, capability)], machine)
    assert sentence in reason
    assert bool(reason) == bool(sentence)
    if sentence:
        assert f"was built by {builder_name} 10.5 for compute capability {capability}" in reason


def test_a_plan_without_its_record_is_refused(tmp_path: Path) -> None:
    plan = saved_plan(tmp_path, TENSORRT, ADA)
    record = plan.with_name("model.plan.json")
    record.write_text(json.dumps({"builder": "tensorrt"}))
    with pytest.raises(ValueError, match=r"model\.plan\.json is no record of a plan"):
        refusal([plan], [])
    record.unlink()
    with pytest.raises(ValueError, match="has no record of what it was built for"):
        refusal([plan], [])
