"""prepare_match: photos, titles and queries to pixels [H, W, 3] and token ids [L] of both texts.

As prepare_product, whose model the export puts next to this one, with the files that it reads. Here every row needs its
photo, and one of the two texts: an absent query is masked whole, an absent title but for its first token. A text that
the network does not read to its end is answered for what it reads, and `text_cut` says so.
"""

from pathlib import Path

import numpy as np
import prepare_product  # Triton puts this folder on the import path
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer


class TritonPythonModel(prepare_product.TritonPythonModel):
    """Prepares the rows of all requests of a dynamic batch together."""

    def initialize(self, args):
        """Read what prepare_product reads, and the tokenizer again, to see how long a text would be."""
        super().initialize(args)
        self.uncut = Tokenizer.from_file(str(Path(__file__).parent / "tokenizer.json"))
        self.uncut.no_truncation()
        self.uncut.no_padding()

    def read(self, request):
        """The rows of a request."""
        return Request(request, self.max_characters)

    def answered(self, prepared, asked):
        """The tokens of queries beside what prepare_product prepared, and whether a text was cut."""
        titles = [title for request in asked for title in request.titles]
        queries = [query for request in asked for query in request.queries]
        encodings = self.tokenizer.encode_batch_fast(queries)
        query_mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
        query_mask[[query == "" for query in queries]] = 0
        full = [prepared["attention_mask"].all(1), query_mask.all(1)]  # only these may have been cut
        cut = [
            any(reached[row] and self.is_cut(text) for text, reached in zip(texts, full, strict=True))
            for row, texts in enumerate(zip(titles, queries, strict=True))
        ]
        return {
            "pixel_values": prepared["pixel_values"],
            "input_ids": prepared["input_ids"],
            "attention_mask": prepared["attention_mask"],
            "query_ids": np.array([encoding.ids for encoding in encodings], np.int64),
            "query_mask": query_mask,
            "text_cut": np.array(cut, np.bool_)[:, None],
        }

    def is_cut(self, text):
        """Whether a text has more tokens than the network reads."""
        return len(self.uncut.encode(text).ids) > self.tokenizer.truncation["max_length"]


class Request(prepare_product.Request):
    """The rows of one request, and what is wrong with them before any pixel is decoded ("" for nothing)."""

    def __init__(self, request, max_characters):
        self.encoded_queries = pb_utils.get_input_tensor_by_name(request, "query").as_numpy().ravel()
        self.queries = []
        super().__init__(request, max_characters)

    def read(self, images, encoded, max_characters):
        """Reads queries, then what prepare_product reads, up to the first row that has a fault."""
        for row, (image, title, query) in enumerate(zip(images, encoded, self.encoded_queries, strict=True)):
            try:
                self.queries.append(prepare_product.clean(query, max_characters))
            except UnicodeDecodeError as error:
                found = f"byte 0x{query[error.start]:02x} at position {error.start}"
                self.error = f"query{self.of_row(row)} is not valid UTF-8: {found}"
                return
            where = f"row {row}: " if self.rows > 1 else ""
            if not image:
                self.error = f"{where}the input image is empty"
                return
            if not self.queries[row] and not title.strip():
                self.error = f"{where}the inputs title and query are both empty; give at least one of them"
                return
        super().read(images, encoded, max_characters)
