"""prepare_match: photos, titles and queries to pixels [H, W, 3], token ids [T, L] of titles and [L] of the query.

As prepare_product, whose model the export puts next to this one, with the files that it reads. Here every row needs its
photo, and for each of its T titles one of the two texts: an absent query is masked whole, an absent title but for its
first token. A text that the network does not read to its end is answered for what it reads, and `text_cut` says so.
"""

from pathlib import Path

import numpy as np
import prepare_product  # Triton puts this folder on the import path
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

MOST_TITLES = 128  # of a request: what it costs is bounded


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
        by_photo = (len(queries), -1, query_mask.shape[1])  # all requests of a batch have as many titles a photo
        return {
            "pixel_values": prepared["pixel_values"],
            "input_ids": prepared["input_ids"].reshape(by_photo),
            "attention_mask": prepared["attention_mask"].reshape(by_photo),
            "query_ids": np.array([encoding.ids for encoding in encodings], np.int64),
            "query_mask": query_mask,
            "text_cut": self.cut(titles, prepared["attention_mask"]).reshape(by_photo[:2])
            | self.cut(queries, query_mask)[:, None],
        }

    def cut(self, texts, attention_mask):
        """[N] bool, which texts have more tokens than the network reads; only what fills their places may have."""
        full = attention_mask.all(1)
        return np.array([reached and self.is_cut(text) for reached, text in zip(full, texts, strict=True)], np.bool_)

    def is_cut(self, text):
        """Whether a text has more tokens than the network reads."""
        return len(self.uncut.encode(text).ids) > self.tokenizer.truncation["max_length"]


class Request(prepare_product.Request):
    """The rows of one request, T titles in each, and what is wrong with them before any pixel is decoded."""

    def __init__(self, request, max_characters):
        self.encoded_queries = pb_utils.get_input_tensor_by_name(request, "query").as_numpy().ravel()
        self.queries = []
        super().__init__(request, max_characters)

    def read(self, images, encoded, max_characters):
        """Reads queries, titles and the headers of images, up to the first row that has a fault."""
        if len(encoded) > MOST_TITLES:
            self.error = f"{len(encoded)} titles in one request; at most {MOST_TITLES} are answered"
            return
        by_photo = encoded.reshape(len(images), -1)
        for row, (image, titles, query) in enumerate(zip(images, by_photo, self.encoded_queries, strict=True)):
            try:
                where = f"query{self.of_row(row)}"
                self.queries.append(prepare_product.clean(query, max_characters))
                for place, title in enumerate(titles):
                    where = f"title{f' {place}' if len(titles) > 1 else ''}{self.of_row(row)}"
                    self.titles.append(prepare_product.clean(title, max_characters))
                    if not self.queries[row] and not self.titles[-1]:
                        self.error = f"{where} and its query are both empty; give at least one of them"
                        return
            except UnicodeDecodeError as error:
                found = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
                self.error = f"{where} is not valid UTF-8: {found}"
                return
            if not image:
                self.error = f"image{self.of_row(row)} is empty"
                return
            try:
                self.opened.append(prepare_product.open_image(image))
            except prepare_product.ImageError as error:
                self.error = f"image{self.of_row(row)}: {error}"
                return
