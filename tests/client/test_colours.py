"""What the client refuses about colours before it asks a server, and how it reads an answer."""

from __future__ import annotations

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from client import InvalidInput, ServerError, ShelfwiseClient
from client.ensembles import match_colours

PHOTO = np.zeros((4, 4, 3), np.uint8)


def answer(probability: np.ndarray, assignment: np.ndarray) -> service_pb2.ModelInferResponse:
    """A server's answer as it comes over the wire."""
    response = service_pb2.ModelInferResponse(model_name="match_colours")
    for name, array, datatype in (("probability", probability, "FP32"), ("assignment", assignment, "INT32")):
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        response.raw_output_contents.append(array.tobytes())
    return response


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([], [], "0 images and 0 labels"),
        ([], ["red"], "0 images and 1 labels"),
        ([PHOTO, PHOTO], ["red"], "2 images and 1 labels"),
        ([PHOTO], "red", "labels must be a sequence, not one str: 'red'"),
        ("1.jpg", ["red"], "images must be a sequence, not one str: '1.jpg'"),
        (None, ["red"], "images must be a sequence, not one NoneType"),
        ([PHOTO], [7], "label 0 must be text, not int"),
        ([PHOTO], ["a", "\ud800"], "label 1 is not valid Unicode"),
        ([PHOTO, "/no/such/file.jpg"], ["a", "b"], "image 1: "),
    ],
)
def test_wrong_products_are_refused_before_a_server_is_asked(images: list, labels: list, message: str) -> None:
    with ShelfwiseClient("127.0.0.1:1", timeout=5) as client, pytest.raises(InvalidInput, match=message):
        client.match_colours(images, labels)


def test_a_request_is_one_row_of_photos_and_labels() -> None:
    call = match_colours(one_to_one=False)
    message = call.request([call.encode(([b"abc", b"defg"], ["红", "b", ""]))])
    assert [(tensor.name, list(tensor.shape)) for tensor in message.inputs] == [("images", [1, 2]), ("labels", [1, 3])]
    assert message.raw_input_contents[0] == b"\3\0\0\0abc\4\0\0\0defg"
    assert message.raw_input_contents[1] == b"\3\0\0\0" + "红".encode() + b"\1\0\0\0b\0\0\0\0"


def test_both_ways_to_decode_are_read_off_one_answer() -> None:
    probability = np.array([[[0.6, 0.4], [0.9, 0.1]]], np.float32)
    response = answer(probability, np.array([[1, 0]], np.int32))
    row = ([b"", b""], [b"a", b"b"])
    (free,) = match_colours(one_to_one=False).answers(response, [row])
    assert [(match.label, match.index) for match in free] == [("a", 0), ("a", 0)]
    (assigned,) = match_colours(one_to_one=True).answers(response, [row])
    assert [(match.label, match.index) for match in assigned] == [("b", 1), ("a", 0)]
    assert assigned[0].probability == pytest.approx(0.4)
    assert assigned[0].probabilities == pytest.approx((0.6, 0.4))


def test_an_answer_of_another_shape_is_no_shelfwise_servers() -> None:
    response = answer(np.zeros((1, 2, 3), np.float32), np.zeros((1, 2), np.int32))
    with pytest.raises(ServerError, match=r"'probability' of shape \[1, 2, 2\], but has shape \[1, 2, 3\]"):
        match_colours(one_to_one=False).answers(response, [([b"", b""], [b"a", b"b"])])
