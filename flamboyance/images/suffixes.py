"""The suffixes of image and video files, for every command and every format of data."""

SUFFIXES = (
    *(".jpg", ".png", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jfif", ".jpe"),
    *(".jp2", ".j2k", ".jpx", ".mpo", ".apng", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi"),
)
"""In lower case, with the dot; in order of preference, where files differ only in their suffix."""

UNREADABLE = (
    *(".heic", ".heif", ".hif", ".jxl", ".svg", ".psd", ".ico", ".exr"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
"""Of image formats that are not supported; such files are reported, not skipped silently."""

VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp")
"""Of video files, wherever an image may be. (Animations have the suffixes of images: .gif, .webp.)"""

MEDIA_SUFFIXES = SUFFIXES + VIDEO_SUFFIXES
"""Of both: images come first where a file of each kind has the same name."""
