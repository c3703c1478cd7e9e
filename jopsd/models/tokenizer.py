"""The tokenizer of a Hugging Face directory, and the tokens that end a completion."""

from pathlib import Path

from jopsd.models.hf import CONFIG, GENERATION, VOCABULARIES
from jopsd.models.safetensors_files import read_json


def load_tokenizer(directory: str | Path):
    """The tokenizer of a directory (a transformers tokenizer), from local files only.

    Raises:
      FileNotFoundError: the directory or its vocabulary file does not exist.
      ValueError: the files are there but do not make a tokenizer.
    """
    from transformers import AutoTokenizer  # slow to import

    directory = Path(directory)
    if not any((directory / name).is_file() for name in VOCABULARIES):
        raise FileNotFoundError(f"no tokenizer in {directory}: none of {', '.join(VOCABULARIES)} is there")
    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:
        raise ValueError(f"{directory}: transformers cannot make a tokenizer of these files: {error}") from error


def eos_ids(directory: str | Path, tokenizer) -> tuple[int, ...]:
    """Token ids that end a completion: from generation_config.json, else config.json, else the tokenizer.

    Raises:
      ValueError: none of them names one, or one that is not an integer.
    """
    directory = Path(directory)
    for name in (GENERATION, CONFIG):
        path = directory / name
        value = read_json(path, "").get("eos_token_id") if path.is_file() else None
        if value is not None and value != []:
            ids = value if isinstance(value, list) else [value]
            if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
                raise ValueError(f"{path}: eos_token_id = {value!r} is not an integer or a list of integers")
            return tuple(dict.fromkeys(ids))
    if getattr(tokenizer, "eos_token_id", None) is None:
        raise ValueError(f"no end token: add eos_token_id to {directory / GENERATION} or an eos_token to the tokenizer")
    return (int(tokenizer.eos_token_id),)
