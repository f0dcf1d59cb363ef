"""What our own files are called; needs nothing but the language, for whoever starts quickly."""

KINDS = ("rollback", "verify", "export")
_WORDS = "abcdefghijklmnopqrstuvwxyz0123456789_"


def counts(file: str) -> bool:
    """Tell whether a file ends with `.sql` and is not hidden."""
    return file.endswith(".sql") and file[0] != "."


def parts(file: str) -> tuple[int, str, str] | None:
    """Return the version, the migration's name and the kind (`up` or one of KINDS).

    None when the name is not `NNN_snake_case.sql`: 3 to 18 digits, then lower-case words.
    """
    name = file.removesuffix(".sql")
    digits, _, words = name.partition("_")
    if not (name != file and digits.isascii() and digits.isdecimal() and 3 <= len(digits) <= 18):  # noqa: PLR2004
        return None
    if words.strip(_WORDS) or "__" in f"_{words}_":  # another letter, or a word of none
        return None
    base, _, kind = name.rpartition("_")
    return (int(digits), base, kind) if kind in KINDS else (int(digits), name, "up")
