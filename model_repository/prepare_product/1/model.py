"""prepare_product: image files and titles to pixels [H, W, 3], token ids [L], and which of the two were given.

An empty image or title (for the title also only white space) is allowed where the other is there: a white picture, or
padding with one attended position, since attention over nothing has no value. A row with neither, a file that cannot be
decoded and a title that is not UTF-8 fail their own request with INVALID_ARG and what was found; the others in the
batch are answered, and those with large images later. The decoder is the one that training used: the export copies
catalogue/images next to this file.
"""

import json
import os
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from images import ImageError, open_image  # Triton puts this folder on the import path
from images.decoding_threads import DecodingThreads, fault_of_weight
from tokenizers import Tokenizer

WHITE = 255
CONTROL_CHARACTERS = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)]))
CONTROL_TO_SPACE = str.maketrans(CONTROL_CHARACTERS, " " * len(CONTROL_CHARACTERS))
# What str.strip takes away, and the control characters.
BLANK = CONTROL_CHARACTERS + "".join(character for character in map(chr, range(0x3001)) if character.isspace())


class TritonPythonModel:
    """Prepares the rows of all requests of a dynamic batch together."""

    def initialize(self, args):
        """Read sizes and tokenizer, start the threads."""
        self.give_way()
        folder = Path(__file__).parent
        sizes = json.loads((folder / "preprocessing.json").read_text())
        self.height, self.width = int(sizes["height"]), int(sizes["width"])
        max_length = int(sizes["max_length"])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(max_length)
        padding = self.tokenizer.padding or {"pad_id": 0, "pad_token": "[PAD]"}  # masked, so the id makes no difference
        self.tokenizer.enable_padding(
            length=max_length, pad_id=padding["pad_id"], pad_token=padding["pad_token"], direction="right"
        )
        # All that can reach the tokens, so that a megabyte costs no more than a title. Four times what they can hold: a
        # normalizer may compose several characters into one.
        self.max_characters = 4 * max_length * max(map(len, self.tokenizer.get_vocab()))
        self.decoding = DecodingThreads()

    def give_way(self):
        """Lets the step that computes go first.

        What is prepared faster than it can be computed is refused by the next queue, and was prepared in vain: under
        overload nine in ten rows were.
        """
        os.nice(10)

    def execute(self, requests):
        """One response a request, of which those that are set aside come later."""
        asked = [self.read(request) for request in requests]
        senders = [request.get_response_sender for request in requests]
        return self.decoding.respond(asked, senders, self.answers, refuse)

    def read(self, request):
        """The rows of a request; prepare_match reads queries, too."""
        return Request(request, self.max_characters)

    def answers(self, asked):
        """The responses to requests whose images are decoded together."""
        images = [image for request in asked if not request.error for image in request.opened]
        titles = [title for request in asked if not request.error for title in request.titles]
        pixels = np.empty((len(images), self.height, self.width, 3), np.uint8)
        faults = list(self.decoding.map(self.decode_into, list(zip(pixels, images, strict=True))))
        encodings = self.tokenizer.encode_batch_fast(titles) if titles else []  # a batch may hold only bad requests
        prepared = {
            "pixel_values": pixels,
            "input_ids": np.array([encoding.ids for encoding in encodings], np.int64),
            "attention_mask": np.array([encoding.attention_mask for encoding in encodings], np.int64),
            "image_present": np.array([[image is not None] for image in images], np.bool_),
            "text_present": np.array([[title != ""] for title in titles], np.bool_),
        }
        if titles:
            prepared["attention_mask"][:, 0] = 1
            prepared = self.answered(prepared, [request for request in asked if not request.error])

        responses, start = [], 0
        for request in asked:
            if request.error:
                responses.append(refuse(request.error))
                continue
            stop = start + len(request.opened)
            bad = next((row for row in range(start, stop) if faults[row]), None)
            if bad is not None:
                responses.append(refuse(f"image{request.of_row(bad - start)}: {faults[bad]}"))
            else:
                responses.append(
                    pb_utils.InferenceResponse(
                        [pb_utils.Tensor(name, array[start:stop]) for name, array in prepared.items()]
                    )
                )
            start = stop
        return responses

    def answered(self, prepared, asked):
        """What is answered about the rows of requests; product_categorizer computes here."""
        return prepared

    def decode_into(self, place):
        """Decode one row into its pixels. Returns what is wrong with it, "" for nothing."""
        pixels, image = place
        if image is None:
            pixels[...] = WHITE
            return ""
        try:
            pixels[...] = image.decode(self.height, self.width)
        except ImageError as error:
            return str(error)
        return ""

    def finalize(self):
        """Called by Triton when the model is unloaded."""
        self.decoding.shutdown()


class Request:
    """The rows of one request, and what is wrong with them before any pixel is decoded ("" for nothing)."""

    def __init__(self, request, max_characters):
        images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().ravel()
        encoded = pb_utils.get_input_tensor_by_name(request, "title").as_numpy().ravel()
        self.rows = len(images)
        self.titles = []
        self.opened = []  # None for no image
        self.error = ""
        self.read(images, encoded, max_characters)
        self.weight = 0 if self.error else sum(image.weight for image in self.opened if image)
        if fault := fault_of_weight(self.weight, len(self.opened)):
            self.error, self.weight = fault, 0

    def read(self, images, encoded, max_characters):
        """Reads titles and the headers of images, up to the first row that has a fault."""
        for row, (image, data) in enumerate(zip(images, encoded, strict=True)):
            try:
                self.titles.append(clean(data, max_characters))
            except UnicodeDecodeError as error:
                found = f"byte 0x{data[error.start]:02x} at position {error.start}"
                self.error = f"title{self.of_row(row)} is not valid UTF-8: {found}"
                return
            if not image and not self.titles[row]:
                where = f"row {row}: " if self.rows > 1 else ""
                self.error = f"{where}the inputs image and title are both empty; give at least one of them"
                return
            try:
                self.opened.append(open_image(image) if image else None)
            except ImageError as error:
                self.error = f"image{self.of_row(row)}: {error}"
                return

    def of_row(self, row):
        """Names the row when the request has several."""
        return f" of row {row}" if self.rows > 1 else ""


def clean(data, max_characters):
    """A row's text: decoded, control characters as spaces, cut to `max_characters`. Raises UnicodeDecodeError."""
    return data.decode("utf-8").lstrip(BLANK)[:max_characters].translate(CONTROL_TO_SPACE).rstrip(BLANK)


def refuse(message, status="INVALID_ARG"):
    """An answer with an error; `pb_utils.TritonError`, which names the states, is only there once a model runs."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, status)))
