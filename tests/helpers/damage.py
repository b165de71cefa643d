"""What may become of a file."""


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
