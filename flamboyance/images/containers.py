"""Which container of videos a file is, by its first bytes."""

from __future__ import annotations

HEAD = 192  # bytes that `container` reads

# ISO base media files (MP4, MOV) begin with a box; these brands are still images in the same form.
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_STILLS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"crx ")
_STARTS = {
    b"\x1a\x45\xdf\xa3": "matroska",
    b"FLV\x01": "flv",
    b"OggS": "ogg",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
    b"\x00\x00\x01\xba": "mpeg",
}


def container(head: bytes) -> str | None:
    """FFmpeg's name of a video file's container ("mov" for MP4, "matroska" for WebM, …); None for any other file.

    The name is given to FFmpeg, which would otherwise also open playlists, which name other files and addresses.

    Args:
        head: the first `HEAD` bytes, or all of a shorter file.
    """
    if head[4:8] in _BOXES:
        return None if head[4:8] == b"ftyp" and head[8:12] in _STILLS else "mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:1] == head[188:189] == b"G" and head[:4] != b"GIF8":  # packets of 188 bytes
        return "mpegts"
    return next((name for start, name in _STARTS.items() if head.startswith(start)), None)
