"""assign_colours: probabilities [n, m] of labels for photos to one label a photo, none given twice.

They come with the room that the largest product of a batch took, which is cut away here. The assignment is the one
whose probability as a whole is largest, by scipy; assignment.py is copied here by the export.
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
        """The probabilities and the assignment of the products of one request, which are of one size."""
        present = pb_utils.get_input_tensor_by_name(request, "pair_present").as_numpy()[0]
        photos, labels = present[:, 0].sum(), present[0].sum()
        probability = pb_utils.get_input_tensor_by_name(request, "probability").as_numpy()[:, :photos, :labels]
        if not np.isfinite(probability).all():
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("a probability is not a finite number"))
        assignment = np.stack([one_to_one(product) for product in probability])
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("probability", np.ascontiguousarray(probability)),
                pb_utils.Tensor("assignment", assignment),
            ]
        )
