"""tokenize: UTF-8 text to input_ids and attention_mask [L], padded and truncated to the bundle's max_length.

Control characters (NUL among them) count as spaces. Text that is empty or only white space is "no text":
text_present = false, with at least one attended position, since attention over nothing has no value. Invalid UTF-8
fails its own request with INVALID_ARG. A very long text is cut before it is tokenised, generously: max_length times the
longest token of the vocabulary is all that can reach the result, so a megabyte costs no more than a title.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

CONTROL_CHARACTERS = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)]))
CONTROL_TO_SPACE = str.maketrans(CONTROL_CHARACTERS, " " * len(CONTROL_CHARACTERS))
# What str.strip takes away, and the control characters.
BLANK = CONTROL_CHARACTERS + "".join(character for character in map(chr, range(0x3001)) if character.isspace())


class TritonPythonModel:
    """Tokenises the rows of all requests of a dynamic batch together."""

    def initialize(self, args):
        """Load the bundle's tokenizer; padding and truncation are set to its max_length."""
        folder = Path(__file__).parent
        self.max_length = int(json.loads((folder / "preprocessing.json").read_text())["max_length"])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(self.max_length)
        padding = self.tokenizer.padding or {"pad_id": 0, "pad_token": "[PAD]"}  # masked, so the id makes no difference
        self.tokenizer.enable_padding(
            length=self.max_length, pad_id=padding["pad_id"], pad_token=padding["pad_token"], direction="right"
        )
        # Four times what the tokens can hold: a normalizer may compose several characters into one.
        self.max_characters = 4 * self.max_length * max(map(len, self.tokenizer.get_vocab()))

    def execute(self, requests):
        """One response a request."""
        texts = [pb_utils.get_input_tensor_by_name(request, "text").as_numpy().ravel() for request in requests]
        errors = [""] * len(requests)
        rows = []
        for index, request_texts in enumerate(texts):
            try:
                rows += [self.clean(row, data) for row, data in enumerate(request_texts)]
            except InvalidText as error:
                errors[index] = error.message(len(request_texts))
                texts[index] = []
        # A batch that holds only bad requests has no rows left to encode.
        encodings = self.tokenizer.encode_batch_fast(rows) if rows else []
        input_ids = np.array([encoding.ids for encoding in encodings], np.int64)
        attention_mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
        present = np.array([[row != ""] for row in rows], np.bool_)
        if rows:
            attention_mask[:, 0] = 1
        responses, start = [], 0
        for request_texts, error in zip(texts, errors, strict=True):
            stop = start + len(request_texts)
            if error:
                response = pb_utils.InferenceResponse(
                    error=pb_utils.TritonError(error, pb_utils.TritonError.INVALID_ARG)
                )
            else:
                response = pb_utils.InferenceResponse(
                    [
                        pb_utils.Tensor("input_ids", input_ids[start:stop]),
                        pb_utils.Tensor("attention_mask", attention_mask[start:stop]),
                        pb_utils.Tensor("text_present", present[start:stop]),
                    ]
                )
            responses.append(response)
            start = stop
        return responses

    def clean(self, row, data):
        """A row's text, decoded, cut to what can matter, without control characters. Raises InvalidText."""
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidText(row, f"byte 0x{data[error.start]:02x} at position {error.start}") from None
        return text.lstrip(BLANK)[: self.max_characters].translate(CONTROL_TO_SPACE).rstrip(BLANK)


class InvalidText(ValueError):
    """A row that is not UTF-8."""

    def __init__(self, row, found):
        super().__init__(row, found)
        self.row, self.found = row, found

    def message(self, rows):
        """The sentence for the caller; names the row when the request has several."""
        where = f"text of row {self.row}" if rows > 1 else "text"
        return f"{where} is not valid UTF-8: {self.found}"
