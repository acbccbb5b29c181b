"""From a bundle to a model repository that Triton serves: ONNX graphs, the parity gate, versions and rollback."""
