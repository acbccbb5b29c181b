"""decode_image: image files to uint8 pixels [H, W, 3], each row on a thread of a small pool.

An empty row means "no image": a white picture and image_present = false, so that the shapes of a batch stay equal. A
file that cannot be decoded fails its own request with INVALID_ARG and what was found; the others in the batch are
answered. The decoder is the one that training used: the export copies catalogue/images.py next to this file.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from images import ImageError, decode_image  # Triton puts this folder on the import path

WHITE = 255


class TritonPythonModel:
    """Decodes the rows of all requests of a dynamic batch together."""

    def initialize(self, args):
        """Read the picture size and start the threads."""
        size = json.loads((Path(__file__).parent / "preprocessing.json").read_text())
        self.height, self.width = int(size["height"]), int(size["width"])
        self.pool = ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0)), thread_name_prefix="decode")

    def execute(self, requests):
        """One response a request; a batch of one row is decoded on this thread."""
        images = [pb_utils.get_input_tensor_by_name(request, "image").as_numpy().ravel() for request in requests]
        rows = [row for request_images in images for row in request_images]
        pixels = np.empty((len(rows), self.height, self.width, 3), np.uint8)
        present = np.array([[len(row) > 0] for row in rows], np.bool_)
        decode = map if len(rows) == 1 else self.pool.map
        errors = list(decode(self.decode_into, pixels, rows))

        responses, start = [], 0
        for request_images in images:
            stop = start + len(request_images)
            responses.append(respond(pixels[start:stop], present[start:stop], errors[start:stop]))
            start = stop
        return responses

    def decode_into(self, pixels, data):
        """Decode one row into its place. Returns what is wrong with it, "" for nothing."""
        if not data:
            pixels[...] = WHITE
            return ""
        try:
            pixels[...] = decode_image(data, self.height, self.width)
        except ImageError as error:
            return str(error)
        return ""

    def finalize(self):
        """Called by Triton when the model is unloaded."""
        self.pool.shutdown()


def respond(pixels, present, errors):
    """A request's pixels, or an error that names the row when there are several."""
    for row, error in enumerate(errors):
        if error:
            where = f"image of row {row}: " if len(errors) > 1 else "image: "
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(where + error, pb_utils.TritonError.INVALID_ARG)
            )
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor("pixel_values", pixels), pb_utils.Tensor("image_present", present)]
    )
