"""How commands say what went wrong."""


def one_line(error: BaseException) -> str:
    """An error's message, its lines joined by semicolons."""
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
