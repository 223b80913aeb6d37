"""The suffixes that make a file an image, for every command and every format of data."""

SUFFIXES = (
    *(".jpg", ".png", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jfif", ".jpe"),
    *(".jp2", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi"),
)
"""In lower case, with the dot; first choice first, where several files differ in their suffix only."""

UNREADABLE = (".heic", ".heif", ".hif", ".jxl", ".svg", ".raw", ".dng", ".cr2", ".nef", ".arw", ".psd")
"""Of pictures that cannot be opened here; reported rather than passed over."""
