"""prepare_query: image files, texts and entities to pixels [H, W, 3], token ids [L] and entity numbers [E].

What a request does not give is absent: a white picture, padding with one attended position, number 0. A `query` goes
through the parser that training used: "diesel jacket" is the brand Diesel and the description "jacket". A request that
gives nothing at all, a file that cannot be decoded, a text that is not UTF-8 and a list of entities of another length
than there are groups fail with INVALID_ARG and what was found; the others in the batch are answered.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from images import ImageError, decode_image  # Triton puts this folder on the import path
from served_entities.entities import EntityVocabulary
from tokenizers import Tokenizer

WHITE = 255
CONTROL_CHARACTERS = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)]))
CONTROL_TO_SPACE = str.maketrans(CONTROL_CHARACTERS, " " * len(CONTROL_CHARACTERS))
INPUTS = ("image", "description", "query", "like")


class TritonPythonModel:
    """Prepares the rows of all requests of a dynamic batch together."""

    def initialize(self, args):
        """Read sizes, tokenizer and vocabulary, start the threads."""
        folder = Path(__file__).parent
        sizes = json.loads((folder / "preprocessing.json").read_text())
        self.height, self.width = int(sizes["height"]), int(sizes["width"])
        self.max_length = int(sizes["max_length"])
        self.vocabulary = EntityVocabulary.load(folder / "entities.json")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(self.max_length)
        padding = self.tokenizer.padding or {"pad_id": 0, "pad_token": "[PAD]"}  # masked, so the id makes no difference
        self.tokenizer.enable_padding(
            length=self.max_length, pad_id=padding["pad_id"], pad_token=padding["pad_token"], direction="right"
        )
        self.max_characters = 4 * self.max_length * max(map(len, self.tokenizer.get_vocab()))
        self.pool = ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0)), thread_name_prefix="decode")

    def execute(self, requests):
        """One response a request; the images and the texts of all of them are prepared together."""
        asked = [Asked(request, self.vocabulary, self.max_characters) for request in requests]
        good = [request for request in asked if not request.error]
        images = [image for request in good for image in request.images]
        decode = map if len(images) == 1 else self.pool.map
        decoded = iter(list(decode(self.decode, images)))
        texts = [text for request in good for text in request.texts]
        encodings = iter(self.tokenizer.encode_batch_fast(texts) if texts else [])
        return [self.respond(request, decoded, encodings) for request in asked]

    def decode(self, data):
        """Pixels of one image, or the error that says what is wrong with it."""
        if not data:
            return None
        try:
            return decode_image(data, self.height, self.width)
        except ImageError as error:
            return error

    def respond(self, request, decoded, encodings):
        """The tensors of one request, or its error; takes its rows off `decoded` and `encodings`."""
        if request.error:
            return refuse(request.error)
        rows = len(request.images)
        images = [next(decoded) for _ in range(rows)]
        tokens = [next(encodings) for _ in range(rows)]
        for row, image in enumerate(images):
            if isinstance(image, ImageError):
                return refuse(f"image{request.of_row(row)}: {image}")
        white = np.full((self.height, self.width, 3), WHITE, np.uint8)
        described = np.array([[bool(text)] for text in request.texts], np.bool_)
        numbers = np.array([self.vocabulary.numbers(named) for named in request.entities], np.int64)
        mask = np.array([encoding.attention_mask for encoding in tokens], np.int64)
        mask[:, 0] = 1  # attention over nothing has no value
        names = [[named.get(group, "").encode() for group in self.vocabulary.groups] for named in request.entities]
        prepared = {
            "pixel_values": np.stack([white if image is None else image for image in images]),
            "image_present": np.array([[image is not None] for image in images], np.bool_),
            "input_ids": np.array([encoding.ids for encoding in tokens], np.int64),
            "attention_mask": mask,
            "described": described,
            "entity_ids": numbers.reshape(rows, len(self.vocabulary.groups)),
            "text_present": described | numbers.any(axis=1, keepdims=True),
            "named": np.array(names, np.object_).reshape(rows, len(self.vocabulary.groups)),
        }
        wanted = request.wanted
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, array) for name, array in prepared.items() if name in wanted]
        )

    def finalize(self):
        """Called by Triton when the model is unloaded."""
        self.pool.shutdown()


class Asked:
    """The rows of one request, and what is wrong with them before any pixel is decoded ("" for nothing).

    Attributes:
        images: image files, b"" for none.
        texts: descriptions, "" for none.
        entities: values by group, given or found in the query.
    """

    def __init__(self, request, vocabulary, max_characters):
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in (*INPUTS, "entities")}
        given = {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}
        self.wanted = set(request.requested_output_names())
        self.rows = len(next(iter(given.values())))
        empty = np.full((self.rows, 1), b"", np.object_)
        self.columns = {name: given.get(name, empty)[:, 0] for name in INPUTS}
        self.given_entities = given.get("entities")
        self.images = list(self.columns["image"])
        self.texts, self.entities = [], []
        self.error = self.fault(vocabulary, max_characters)

    def fault(self, vocabulary, max_characters):
        """Reads texts and entities; returns what is wrong with the request."""
        for row in range(self.rows):
            texts = {}
            for name in ("description", "query"):
                try:
                    texts[name] = clean(self.columns[name][row], max_characters)
                except UnicodeDecodeError as error:
                    return f"{name}{self.of_row(row)} is not valid UTF-8: {found(error)}"
            parsed = vocabulary.parse(texts["query"])
            entities = dict(parsed.entities)
            if self.given_entities is not None and self.given_entities.shape[1]:
                try:
                    values = [value.decode() for value in self.given_entities[row]]
                    entities |= vocabulary.named(values) if any(values) else {}
                except UnicodeDecodeError as error:
                    return f"entities{self.of_row(row)} are not valid UTF-8: {found(error)}"
                except ValueError as error:
                    return f"entities{self.of_row(row)}: {error}"
            text = " ".join(part for part in (texts["description"], parsed.description) if part)
            self.texts.append(text)
            self.entities.append(entities)
            if not (self.images[row] or text or any(vocabulary.numbers(entities)) or self.columns["like"][row]):
                return (
                    f"there is nothing to embed or to search by{self.of_row(row)}: image, text and product are empty "
                    "and none of the entities is known"
                )
        return ""

    def of_row(self, row):
        """Names the row when the request has several."""
        return f" of row {row}" if self.rows > 1 else ""


def clean(data, max_characters):
    """A row's text: decoded, control characters as spaces, cut to `max_characters`. Raises UnicodeDecodeError."""
    return data.decode("utf-8").strip()[:max_characters].translate(CONTROL_TO_SPACE).strip()


def found(error):
    """What was found where UTF-8 should be."""
    return f"byte 0x{error.object[error.start]:02x} at position {error.start}"


def refuse(message):
    """An answer with the status INVALID_ARGUMENT."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
