"""Rival: infinity-emb, a server of embeddings, on the encoders as a CLIP checkpoint, by its own command."""

from __future__ import annotations

import argparse
import os
import sys

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("port")
    arguments = parser.parse_args()
    options = ["--model-id", arguments.checkpoint, "--served-model-name", "clip", "--engine", "torch"]
    options += ["--device", "cpu", "--host", "127.0.0.1", "--port", arguments.port]
    # No warm-up: the benchmark does not count its own first requests.
    command = [sys.executable, "-m", "infinity_emb.cli", "v2", *options, "--no-model-warmup"]
    os.execve(sys.executable, command, os.environ | {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"})
