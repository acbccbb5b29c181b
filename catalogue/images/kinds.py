"""What bytes are, from how they begin: the name of a format, and words for the message of a refusal.

The names of formats that are decoded are Pillow's, but for HEIC (Pillow knows no such thing, the plugin calls it HEIF).
"""

from __future__ import annotations

SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG", "a damaged JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG", "a damaged PNG"),
    (b"GIF87a", "GIF", "a damaged GIF"),
    (b"GIF89a", "GIF", "a damaged GIF"),
    (b"BM", "BMP", "a damaged BMP"),
    (b"II*\0", "TIFF", "a damaged TIFF"),
    (b"MM\0*", "TIFF", "a damaged TIFF"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", "a JPEG XL image"),
    (b"\xff\x0a", "JPEG XL", "a JPEG XL image"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000", "a JPEG 2000 image"),
    (b"%PDF", "PDF", "a PDF document"),
    (b"PK\x03\x04", "ZIP", "a ZIP archive"),
    (b"\x1f\x8b", "gzip", "gzip data"),
    (b"%!PS", "PostScript", "a PostScript document"),
    (b"8BPS", "Photoshop", "a Photoshop document"),
    (b"\x00\x00\x01\x00", "icon", "an icon file"),
)
AVIF_BRANDS = {b"avif", b"avis"}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
HEIF_BRANDS = {b"mif1", b"msf1"}  # a container for either; the compatible brands say which
STRAY = 512
"""So many bytes from the start, an image that begins late is looked for."""
BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")
"""How JPEG, PNG, GIF and WebP begin in base64, which callers of JSON interfaces send."""
TEXT_CONTROLS = set(b"\t\n\r\f\x1b")


def kind_of(data: bytes) -> tuple[str, str]:
    """The format that bytes claim to be, "" where they claim none, and what to call them in a sentence."""
    for signature, name, words in SIGNATURES:
        if data.startswith(signature):
            return name, words
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP", "a damaged WebP"
    if data[4:8] == b"ftyp":
        return _iso_media(data)
    if not data[:1024].strip(b"\0"):
        return "", "zero bytes"
    for signature, name in ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF89a", "GIF")):
        if (at := data.find(signature, 1, STRAY)) > 0:
            return name, f"a {name} behind {at} stray {'byte' if at == 1 else 'bytes'}"
    if data[6:11] in (b"JFIF\0", b"Exif\0") or data[2:7] in (b"JFIF\0", b"Exif\0"):
        return "JPEG", "a JPEG without its first bytes"
    return _text(data[:1024], whole=len(data) <= 1024) or ("", f"unknown bytes beginning {data[:8].hex(' ')}")


def describe(data: bytes) -> str:
    """What the bytes are and how many, for the message of a refusal."""
    return f"{kind_of(data)[1]}, {len(data)} bytes"


def _iso_media(data: bytes) -> tuple[str, str]:
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, size - 3, 4))]
    name = "ISO media"
    if brands[0] in AVIF_BRANDS | HEIC_BRANDS | HEIF_BRANDS:
        known = next((brand for brand in brands if brand in AVIF_BRANDS | HEIC_BRANDS), b"")
        name = "AVIF" if known in AVIF_BRANDS else "HEIC"
    return name, f"an ISO media file ({brands[0].decode('latin-1')!r}, such as AVIF, HEIC or video)"


def _text(head: bytes, whole: bool) -> tuple[str, str] | None:
    """Text in UTF-8, perhaps cut in the middle of a character; None for anything that has other control characters."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if whole or error.start < len(head) - 3 or error.reason != "unexpected end of data":
            return None
        text = head[: error.start].decode("utf-8")
    if any((byte < 0x20 and byte not in TEXT_CONTROLS) or byte == 0x7F for byte in head):
        return None
    text = text.strip("\ufeff \t\r\n")
    if "<svg" in text.lower():
        return "SVG", "an SVG drawing"
    if text.lower().startswith(("<!doctype html", "<html")):
        return "HTML", "an HTML page"
    if text.startswith("data:image/") or text.startswith(BASE64):
        return "base64", f"an image in base64, text beginning {text[:24]!r} (send its bytes as they are, decoded)"
    return "text", f"text beginning {text[:40]!r}"
