"""The ensemble `match_colours` as messages: photos and labels of one product out, a label for every photo in."""

from __future__ import annotations

from collections.abc import Sequence

from tritonclient.grpc import service_pb2

from .errors import InvalidInput
from .images import Image, encode_image
from .results import ColourMatch
from .tensors import bytes_tensor, output

MODEL = "match_colours"


def request(images: Sequence[Image], labels: Sequence[str]) -> service_pb2.ModelInferRequest:
    """The message that asks about one product.

    Raises:
        InvalidInput: no image, fewer labels than images, an image that cannot be read or encoded, a label that is no
            text or not valid Unicode.
    """
    if isinstance(labels, str):
        raise InvalidInput(f"labels must be a sequence of texts, not one text: {labels[:40]!r}")
    if not len(images) or len(images) > len(labels):
        raise InvalidInput(
            f"{len(images)} images and {len(labels)} labels: give at least one image and as many labels as images"
        )
    photos = []
    for place, image in enumerate(images):
        try:
            photos.append(encode_image(image))
        except InvalidInput as error:
            raise InvalidInput(f"image {place}: {error}") from error
    tensor = service_pb2.ModelInferRequest.InferInputTensor
    return service_pb2.ModelInferRequest(
        model_name=MODEL,
        inputs=[
            tensor(name="images", datatype="BYTES", shape=(1, len(photos))),
            tensor(name="labels", datatype="BYTES", shape=(1, len(labels))),
        ],
        raw_input_contents=[
            bytes_tensor(photos),
            bytes_tensor(_utf8(label, place) for place, label in enumerate(labels)),
        ],
    )


def parse(
    response: service_pb2.ModelInferResponse, images: int, labels: Sequence[str], *, one_to_one: bool
) -> tuple[ColourMatch, ...]:
    """The match of every image.

    Raises:
        ServerError: the answer is not that of a Shelfwise server.
    """
    width = len(labels)
    probability = output(response, MODEL, "probability", (1, images, width)).values
    assignment = output(response, MODEL, "assignment", (1, images)).values
    matches = []
    for image, assigned in enumerate(assignment):
        row = tuple(probability[image * width : (image + 1) * width])
        chosen = assigned if one_to_one else row.index(max(row))
        matches.append(ColourMatch(labels[chosen], chosen, row[chosen], row))
    return tuple(matches)


def _utf8(label: str, place: int) -> bytes:
    if not isinstance(label, str):
        raise InvalidInput(f"label {place} must be text, not {type(label).__name__}")
    try:
        return label.encode()
    except UnicodeEncodeError as failure:
        reason = f"{failure.reason} at character {failure.start}"
        raise InvalidInput(f"label {place} is not valid Unicode: {reason}") from failure
