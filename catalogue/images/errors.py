"""What is wrong with a file that was taken for an image: the one error of the decoder, with what is worth counting."""

from __future__ import annotations

from typing import Literal

Reason = Literal["empty", "too large", "damaged", "not an image", "not supported"]


class ImageError(ValueError):
    """Bytes that are no image, or none that is taken; the message says what was found.

    Attributes:
        reason: the kind of failure, one of `Reason`. "too large" counts bytes, pixels or scans.
        format: what the bytes are, as `catalogue.images.kinds` names it ("JPEG", "HEIC", "HTML", ...); "" where they
            are nothing known. Images that could not be read are counted by both.
    """

    def __init__(self, message: str, reason: Reason = "damaged", format: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.format = format
