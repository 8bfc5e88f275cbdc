"""Numbers with their nouns."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 image", "2 images".

    Args:
        number: The number.
        noun: The noun for one.
        plural: The noun for any other number; None: `noun` with an s.
    """
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"
