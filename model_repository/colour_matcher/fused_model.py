"""colour_matcher on a GPU: towers in torch and the fused matcher, in place of model.onnx when the export is for a GPU.

The export writes this file as 1/model.py, with fused_colour_matcher.py (all of the computing), the network's modules
and its weights beside it. Inputs and outputs are the ONNX model's, but requests come one by one and are packed here,
and an answer is as large as its product. Needs serving/requirements-gpu.txt in Triton's Python.
"""

from itertools import islice
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

try:
    import torch
    from fused_colour_matcher import load_fused  # Triton puts this folder on the import path
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"colour_matcher was exported for a GPU and needs the Python package {error.name}: install "
        "serving/requirements-gpu.txt in the server's environment"
    ) from error

INPUTS = ("pixel_values", "input_ids", "attention_mask")


class TritonPythonModel:
    """Matches the products of all requests of a dynamic batch in one pass."""

    def initialize(self, args):
        """Read the network, and compile its kernel where there is a GPU."""
        on_gpu = args["model_instance_kind"] == "GPU"
        device = torch.device("cuda", int(args["model_instance_device_id"])) if on_gpu else torch.device("cpu")
        self.matcher = load_fused(Path(__file__).parent, device)
        if on_gpu:
            self.matcher.warm_up()

    def execute(self, requests):
        """One response a request."""
        asked = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in INPUTS] for request in requests
        ]
        # [rows, n, ...] and [rows, m, ...] of every request, rows one after the other.
        packed = [
            np.concatenate([array.reshape(-1, *array.shape[2:]) for array in side]) for side in zip(*asked, strict=True)
        ]
        sizes = [(photos.shape[1], ids.shape[1]) for photos, ids, _ in asked for _ in range(len(photos))]
        answers = iter(self.matcher(*map(torch.from_numpy, packed), sizes))
        return [self.response(islice(answers, len(photos))) for photos, _, _ in asked]

    def response(self, products):
        """The probabilities [rows, n, m] of one request."""
        probability = torch.stack(list(products)).numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("probability", probability)])
