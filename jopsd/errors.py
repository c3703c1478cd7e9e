"""How commands say what went wrong."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: BaseException) -> str:
    """An error's message, its lines joined by semicolons."""
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
