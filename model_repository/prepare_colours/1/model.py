"""prepare_colours: the photos and labels of products to pixels [n, H, W, 3], token ids [m, L], and how many there are.

Labels are cleaned with an eye on all labels of their product, then tokenised; photos are decoded on threads, large ones
apart. Both by the files that training used: the export copies catalogue/images and catalogue/colour_labels.py next to
this one. A product that cannot be answered fails its own request with INVALID_ARG and the reason.
"""

import json
import os
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from colour_labels import clean_labels  # Triton puts this folder on the import path
from images import ImageError, open_image
from images.decoding_threads import DecodingThreads, fault_of_weight
from tokenizers import Tokenizer

MAX_PAIRS = 32_768
"""Products x photos x labels of a request: one product of the largest size."""


class TritonPythonModel:
    """Prepares the products of all requests of a dynamic batch."""

    def initialize(self, args):
        """Read sizes and tokenizer, start the threads."""
        # What is prepared faster than it can be computed is refused by the next queue, and was prepared in vain: under
        # overload nine in ten rows were. So the computing step goes first.
        os.nice(10)
        folder = Path(__file__).parent
        sizes = json.loads((folder / "preprocessing.json").read_text())
        self.height, self.width = int(sizes["height"]), int(sizes["width"])
        self.max_length = int(sizes["max_length"])
        # Photos and labels that a batch of the matcher has room for: [16, 32], say, and the last the most of a request,
        # since the matcher weighs every pair and its memory grows with photos x labels.
        self.rooms = sizes["rooms"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        padding = self.tokenizer.padding or {"pad_id": 0, "pad_token": "[PAD]"}  # masked, so the id makes no difference
        self.tokenizer.enable_truncation(self.max_length)
        self.tokenizer.enable_padding(
            length=self.max_length, pad_id=padding["pad_id"], pad_token=padding["pad_token"], direction="right"
        )
        self.decoding = DecodingThreads()

    def execute(self, requests):
        """One response a request, of which those that are set aside come later."""
        asked = [Request(request, *self.rooms[-1]) for request in requests]
        senders = [request.get_response_sender for request in requests]
        return self.decoding.respond(asked, senders, self.answers, refuse)

    def answers(self, products):
        """The responses to requests whose photos are decoded together."""
        photos = [photo for product in products if not product.error for photo in product.opened]
        decoded = iter(list(self.decoding.map(self.decode, photos)))
        return [self.respond(product, decoded) for product in products]

    def decode(self, photo):
        """Pixels of one photo, or the error that says what is wrong with it."""
        try:
            return photo.decode(self.height, self.width)
        except ImageError as error:
            return error

    def respond(self, product, decoded):
        """The tensors of one request, or its error; takes its photos off `decoded`."""
        if product.error:
            return refuse(product.error)
        rows, n = product.images.shape
        photos = [next(decoded) for _ in range(rows * n)]
        for place, photo in enumerate(photos):
            if isinstance(photo, ImageError):
                return refuse(f"{product.where(place // n)}image {place % n}: {photo}")
        texts = [label for labels in product.texts for label in clean_labels(labels)]
        encodings = self.tokenizer.encode_batch_fast(texts)
        shape = (rows, product.labels.shape[1], self.max_length)
        input_ids = np.array([encoding.ids for encoding in encodings], np.int64).reshape(shape)
        attention_mask = np.array([encoding.attention_mask for encoding in encodings], np.int64).reshape(shape)
        attention_mask[..., 0] = 1  # a tokenizer without a first token of its own gives an empty label nothing to see
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("pixel_values", np.stack(photos).reshape(rows, n, self.height, self.width, 3)),
                pb_utils.Tensor("input_ids", input_ids),
                pb_utils.Tensor("attention_mask", attention_mask),
                pb_utils.Tensor("pair_present", self.pair_present(rows, n, product.labels.shape[1])),
            ]
        )

    def pair_present(self, rows, photos, labels):
        """Where the pairs of `rows` equal products lie in the smallest room for them: bool [rows, room, room]."""
        room = next(room for room in self.rooms if photos <= room[0] and labels <= room[1])
        present = np.zeros((rows, *room), np.bool_)
        present[:, :photos, :labels] = True
        return present

    def finalize(self):
        """Called by Triton when the model is unloaded."""
        self.decoding.shutdown()


class Request:
    """The products of one request, and what is wrong with them before any pixel is decoded ("" for nothing)."""

    def __init__(self, request, max_photos, max_labels):
        self.max_photos, self.max_labels = max_photos, max_labels
        self.images = pb_utils.get_input_tensor_by_name(request, "images").as_numpy()
        self.labels = pb_utils.get_input_tensor_by_name(request, "labels").as_numpy()
        self.texts = []
        self.opened = []
        self.error = self.fault() or self.fault_of_photos()
        self.weight = 0 if self.error else sum(photo.weight for photo in self.opened)

    def fault(self):
        """Reads the labels into `texts`; returns what is wrong with the request."""
        n, m = self.images.shape[1], self.labels.shape[1]
        if not n or n > m:
            return f"{n} images and {m} labels: give at least one image and as many labels as images"
        if n > self.max_photos or m > self.max_labels:
            return f"{n} images and {m} labels: at most {self.max_photos} images and {self.max_labels} labels are taken"
        if len(self.images) * n * m > MAX_PAIRS:
            pairs = f"{len(self.images)} products x {n} images x {m} labels"
            return f"{pairs}: at most {MAX_PAIRS} pairs are taken in one request; send fewer products at a time"
        for row, labels in enumerate(self.labels):
            texts = []
            for place, label in enumerate(labels):
                try:
                    texts.append(label.decode("utf-8"))
                except UnicodeDecodeError as error:
                    found = f"byte 0x{label[error.start]:02x} at position {error.start}"
                    return f"{self.where(row)}label {place} is not valid UTF-8: {found}"
            self.texts.append(texts)
        return ""

    def fault_of_photos(self):
        """Reads the headers of all photos, one product after the other, into `opened`; returns what is wrong."""
        for place, photo in enumerate(self.images.ravel()):
            try:
                self.opened.append(open_image(photo))
            except ImageError as error:
                row, place = divmod(place, self.images.shape[1])
                return f"{self.where(row)}image {place}: {error}"
        weight = sum(photo.weight for photo in self.opened)
        return fault_of_weight(weight, len(self.opened))

    def where(self, row):
        """Names the product when the request has several."""
        return f"row {row}, " if len(self.images) > 1 else ""


def refuse(message, status="INVALID_ARG"):
    """An answer with an error; `pb_utils.TritonError`, which names the states, is only there once a model runs."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, status)))
