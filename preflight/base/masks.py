"""Secrets of an environment, hidden in what a program says."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

HIDDEN = "***"
SHORTEST = 4  # characters of what is only guessed to be a secret: less would garble all output
_NAME = re.compile(
    r"(?i)pass(?!file)|passwd|pwd|secret|token|credential|private|api_?key|_key$|^key$|_(?:pw|psw)$"
)
_NO_SECRET = {"PWD", "OLDPWD", "SSH_AUTH_SOCK"}


def is_secret(name: str) -> bool:
    """Tell by its name whether a variable or an option holds a secret."""
    return bool(_NAME.search(name)) and name not in _NO_SECRET


def of(environment: Mapping[str, str]) -> Mask:
    """Return what hides the values of those variables that are secrets by their names."""
    return Mask(
        {
            value.strip()
            for name, value in environment.items()
            if is_secret(name) and not name.endswith("_FILE") and len(value.strip()) >= SHORTEST
        }
    )


class Mask:
    """Hides secrets in a text, in each spelling that a program may give them."""

    def __init__(self, secrets: Collection[str]) -> None:
        """Know them; each line of a secret that has several is one."""
        parts = {part for secret in secrets for part in (secret, *secret.splitlines())}
        self.spellings = {spelling for part in parts if part.strip() for spelling in _spelt(part)}
        longest_first = sorted(self.spellings, key=lambda each: (-len(each), each))
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        raw = [each.encode("utf-8", "surrogateescape") for each in longest_first]
        self._raw = re.compile(b"|".join(map(re.escape, raw)) or b"(?!)")
        self.longest = max(map(len, raw), default=0)

    def text(self, text: str) -> str:
        """Return a text without them."""
        return self._pattern.sub(HIDDEN, text)

    def raw(self, text: bytes) -> bytes:
        """Return bytes without them."""
        return self._raw.sub(HIDDEN.encode(), text)

    def value(self, value: Any) -> Any:  # noqa: ANN401 -- whatever JSON holds
        """Return a JSON value without them, whatever it escapes."""
        if isinstance(value, dict):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item) for item in value]
        return self.text(value) if isinstance(value, str) else value


def _spelt(secret: str) -> set[str]:
    """Return a secret as URLs, JSON, SQL, keyword strings and shells write it."""
    found = {secret, secret.replace("'", "''"), secret.replace("\\", "\\\\").replace("'", "\\'")}
    found |= {secret.replace("'", quoted) for quoted in ("'\"'\"'", r"'\''")}
    found |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    for form in (quote, quote_plus):
        for safe in ("", "/", "!$&'()*+,;=:"):
            escaped = form(secret, safe, errors="surrogateescape")
            found |= {escaped, re.sub("%..", lambda code: code[0].lower(), escaped)}
    return found
