"""product_categorizer: images and titles to categories in one process, prepare_product and the ONNX file together.

What `shelfwise export --form single` serves in the place of the two steps: a request then crosses one process instead
of two. The export puts prepare_product's model next to this one, as prepare_product.py, with the files that it reads,
and its network. A row alone is computed by a session whose threads spin while it runs, which saves waking them; a batch
by one whose threads sleep, since under load somebody else can use the cores.
"""

from pathlib import Path

import numpy as np
import onnxruntime
import prepare_product  # Triton puts this folder on the import path


class TritonPythonModel(prepare_product.TritonPythonModel):
    """Prepares the rows of all requests of a dynamic batch, and answers them."""

    def initialize(self, args):
        """Read what prepare_product reads, and the network twice."""
        super().initialize(args)
        model = Path(__file__).parent / "network.onnx"
        self.alone, self.together = session(model, spinning=True), session(model, spinning=False)
        self.names = [output.name for output in self.together.get_outputs()]

    def give_way(self):
        """To whom? What is prepared here is computed here."""

    def answered(self, prepared, asked):
        """The network's outputs on prepared rows."""
        network = self.alone if len(prepared["pixel_values"]) == 1 else self.together
        outputs = zip(self.names, network.run(self.names, prepared), strict=True)
        return {name: as_bytes(array) if array.dtype == np.object_ else array for name, array in outputs}


def session(model, *, spinning):
    """A session on all cores. Threads of an idle session never spin, or they would take the other one's cores."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def as_bytes(texts):
    """Texts [B, k] as Triton takes them."""
    return np.array([[text.encode() for text in row] for row in texts], np.object_)
