"""prepare_query: image files, texts and entities to pixels [H, W, 3], token ids [L] and entity numbers [E].

What a request does not give is absent: a white picture, padding with one attended position, number 0. A `query` goes
through the parser that training used: "diesel jacket" is the brand Diesel and the description "jacket". A request that
gives nothing at all, a file that cannot be decoded, a text that is not UTF-8 and a list of entities of another length
than there are groups fail with INVALID_ARG and what was found; the others in the batch are answered.
"""

import json
import os
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from images import ImageError, open_image  # Triton puts this folder on the import path
from images.decoding_threads import DecodingThreads, fault_of_weight
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
        os.nice(10)  # the step that computes goes first, see prepare_product
        folder = Path(__file__).parent
        sizes = json.loads((folder / "preprocessing.json").read_text())
        self.height, self.width = int(sizes["height"]), int(sizes["width"])
        max_length = int(sizes["max_length"])
        self.vocabulary = EntityVocabulary.load(folder / "entities.json")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(max_length)
        padding = self.tokenizer.padding or {"pad_id": 0, "pad_token": "[PAD]"}  # masked, so the id makes no difference
        self.tokenizer.enable_padding(
            length=max_length, pad_id=padding["pad_id"], pad_token=padding["pad_token"], direction="right"
        )
        self.max_characters = 4 * max_length * max(map(len, self.tokenizer.get_vocab()))
        self.decoding = DecodingThreads()

    def execute(self, requests):
        """One response a request, of which those that are set aside come later."""
        asked = [Asked(request, self.vocabulary, self.max_characters) for request in requests]
        senders = [request.get_response_sender for request in requests]
        return self.decoding.respond(asked, senders, self.answers, refuse)

    def answers(self, asked):
        """The responses to requests whose images are decoded, and whose texts are tokenised, together."""
        good = [request for request in asked if not request.error]
        pixels = iter(list(self.decoding.map(self.decode, [image for request in good for image in request.opened])))
        texts = [text for request in good for text in request.texts]
        encodings = iter(self.tokenizer.encode_batch_fast(texts) if texts else [])
        return [
            refuse(request.error) if request.error else self.respond(request, pixels, encodings) for request in asked
        ]

    def decode(self, image):
        """Pixels of one image, white for none, or the error that says what is wrong with it."""
        if image is None:
            return np.full((self.height, self.width, 3), WHITE, np.uint8)
        try:
            return image.decode(self.height, self.width)
        except ImageError as error:
            return error

    def respond(self, request, pixels, encodings):
        """The tensors of one request, or its error; takes its rows off `pixels` and `encodings`."""
        images = [next(pixels) for _ in request.opened]
        tokens = [next(encodings) for _ in request.texts]
        for row, image in enumerate(images):
            if isinstance(image, ImageError):
                return refuse(f"image{request.of_row(row)}: {image}")
        groups = self.vocabulary.groups
        numbers = np.array([self.vocabulary.numbers(named) for named in request.entities], np.int64)
        names = [[named.get(group, "").encode() for group in groups] for named in request.entities]
        described = np.array([[text != ""] for text in request.texts], np.bool_)
        mask = np.array([encoding.attention_mask for encoding in tokens], np.int64)
        mask[:, 0] = 1  # attention over nothing has no value
        prepared = {
            "pixel_values": np.stack(images),
            "image_present": np.array([[image is not None] for image in request.opened], np.bool_),
            "input_ids": np.array([encoding.ids for encoding in tokens], np.int64),
            "attention_mask": mask,
            "described": described,
            "entity_ids": numbers,
            "text_present": described | numbers.any(axis=1, keepdims=True),
            "named": np.array(names, np.object_),
        }
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, array) for name, array in prepared.items() if name in request.wanted]
        )

    def finalize(self):
        """Called by Triton when the model is unloaded."""
        self.decoding.shutdown()


class Asked:
    """The rows of one request, and what is wrong with them before any pixel is decoded ("" for nothing).

    Attributes:
        opened: images, None for none.
        texts: descriptions, "" for none.
        entities: values by group, given or found in the query.
        weight: of the images.
    """

    def __init__(self, request, vocabulary, max_characters):
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in (*INPUTS, "entities")}
        given = {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}
        self.wanted = set(request.requested_output_names())
        self.rows = len(next(iter(given.values())))
        nothing = np.full((self.rows, 1), b"", np.object_)
        self.columns = {name: given.get(name, nothing)[:, 0] for name in INPUTS}
        self.given_entities = given.get("entities", np.empty((self.rows, 0), np.object_))
        self.opened, self.texts, self.entities = [], [], []
        self.error, self.weight = "", 0
        try:
            for row in range(self.rows):
                self.read(row, vocabulary, max_characters)
        except ValueError as error:
            self.error = str(error)
            return
        self.weight = sum(image.weight for image in self.opened if image)
        if fault := fault_of_weight(self.weight, len(self.opened)):
            self.error, self.weight = fault, 0

    def read(self, row, vocabulary, max_characters):
        """Reads texts, entities and the header of the image of a row. Raises ValueError with what is wrong."""
        description, query = (
            clean(decoded(self.columns[name][row], f"{name}{self.of_row(row)}"), max_characters)
            for name in ("description", "query")
        )
        parsed = vocabulary.parse(query)
        entities = dict(parsed.entities)
        values = [decoded(value, f"entities{self.of_row(row)}") for value in self.given_entities[row]]
        if any(values):
            entities |= vocabulary.named(values)
        image = self.columns["image"][row]
        self.texts.append(" ".join(part for part in (description, parsed.description) if part))
        self.entities.append(entities)
        if not (image or self.texts[-1] or self.columns["like"][row] or any(vocabulary.numbers(entities))):
            raise ValueError(
                f"there is nothing to embed or to search by{self.of_row(row)}: image, text and product are empty and "
                "none of the entities is known"
            )
        try:
            self.opened.append(open_image(image) if image else None)
        except ImageError as error:
            raise ValueError(f"image{self.of_row(row)}: {error}") from error

    def of_row(self, row):
        """Names the row when the request has several."""
        return f" of row {row}" if self.rows > 1 else ""


def decoded(data, name):
    """A text. Raises ValueError with what is wrong with it."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at position {error.start}"
        raise ValueError(f"{name} is not valid UTF-8: {found}") from error


def clean(text, max_characters):
    """A text with control characters as spaces, cut to `max_characters`, its ends stripped."""
    return text.strip()[:max_characters].translate(CONTROL_TO_SPACE).strip()


def refuse(message, status="INVALID_ARG"):
    """An answer with an error."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, status)))
