"""assign_colours: probabilities [n, m] of labels for photos to one label a photo, none given twice.

The assignment whose probability as a whole is largest, by scipy; assignment.py is copied here by the export.
"""

import numpy as np
import triton_python_backend_utils as pb_utils
from assignment import one_to_one  # Triton puts this folder on the import path


class TritonPythonModel:
    """Decodes all requests of a dynamic batch, product by product."""

    def execute(self, requests):
        """One response a request."""
        return [self.respond(request) for request in requests]

    def respond(self, request):
        """The assignment of the products of one request."""
        probability = pb_utils.get_input_tensor_by_name(request, "probability").as_numpy()
        if not np.isfinite(probability).all():
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("a probability is not a finite number"))
        assignment = np.stack([one_to_one(product) for product in probability])
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("probability", probability), pb_utils.Tensor("assignment", assignment)]
        )
