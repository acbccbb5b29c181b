"""category_labels: category ids to their names, the full paths in labels.txt (one a line, "A > B > C").

Also refuses, with INVALID_ARG, a row that had neither an image nor a title: only here, at the end of the ensemble, are
both known, and each model keeps a single job. Such a row fails its own request.
"""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Looks up names for all requests of a dynamic batch, request by request."""

    def initialize(self, args):
        """Read the names; line i is the name of category i."""
        path = Path(__file__).parent / "labels.txt"
        self.labels = np.array([line.encode() for line in path.read_text(encoding="utf-8").splitlines()], np.object_)
        if not len(self.labels) or b"" in self.labels:
            raise pb_utils.TritonModelException(f"{path} must hold one category a line and no empty line")

    def execute(self, requests):
        """One response a request."""
        return [self.respond(request) for request in requests]

    def respond(self, request):
        """Names for one request, or what is wrong with it."""
        category_id = pb_utils.get_input_tensor_by_name(request, "category_id").as_numpy()
        image_present = pb_utils.get_input_tensor_by_name(request, "image_present").as_numpy()
        text_present = pb_utils.get_input_tensor_by_name(request, "text_present").as_numpy()
        absent = np.flatnonzero(~(image_present | text_present))
        if absent.size:
            where = f"row {absent[0]}: " if len(category_id) > 1 else ""
            return refuse(f"{where}the inputs image and title are both empty; give at least one of them")
        if category_id.min() < 0 or category_id.max() >= len(self.labels):
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(
                    f"category ids {category_id.min()} to {category_id.max()}, but labels.txt names {len(self.labels)}"
                )
            )
        outputs = [pb_utils.Tensor("category", self.labels[category_id]), pb_utils.Tensor("category_id", category_id)]
        for name in ("probability", "neighbour_kl"):
            outputs.append(pb_utils.Tensor(name, pb_utils.get_input_tensor_by_name(request, name).as_numpy()))
        return pb_utils.InferenceResponse(outputs)


def refuse(message):
    """An answer with the status INVALID_ARGUMENT."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
