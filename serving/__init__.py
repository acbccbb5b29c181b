"""Real Triton from pip: its environment, the server process, readiness, and the onnxruntime backend."""
