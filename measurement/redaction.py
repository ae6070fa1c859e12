"""What is recorded is shared; tokens and passwords are not."""

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "<hidden>"
SECRET_WORDS = {"token", "key", "apikey", "secret", "password", "passwd", "credential", "credentials", "auth"}
SHORTEST_SECRET = 8  # below it a value is more likely a word, which would then be hidden everywhere
USER_IN_URL = re.compile(r"(?<=://)[^\s/@]+(?=@)")  # https://user:token@host
KNOWN_TOKENS = re.compile(r"\b(?:hf_|gh[pousr]_|github_pat_|glpat-|sk-|AKIA)[A-Za-z0-9_-]{16,}")


def without_secrets(content: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """The same texts, lists and dictionaries, with tokens and passwords replaced.

    That is: values of environment variables and dictionary keys that are called a token, key, secret or password;
    users and passwords in URLs; and tokens that are known by how they begin (Hugging Face, GitHub, GitLab, AWS, ...).
    """
    values = sorted((value for name, value in environment.items()
                     if _is_secret(name) and len(value) >= SHORTEST_SECRET), key=len, reverse=True)
    in_environment = re.compile("|".join(map(re.escape, values)) or r"(?!)")

    def clean(part: Any) -> Any:
        if isinstance(part, str):
            for pattern in (in_environment, USER_IN_URL, KNOWN_TOKENS):
                part = pattern.sub(HIDDEN, part)
            return part
        if isinstance(part, Mapping):
            return {name: HIDDEN if isinstance(value, str) and value and _is_secret(str(name)) else clean(value)
                    for name, value in part.items()}
        return [clean(value) for value in part] if isinstance(part, list | tuple) else part

    return clean(content)


def _is_secret(name: str) -> bool:
    return not SECRET_WORDS.isdisjoint(re.split(r"[^a-z0-9]+", name.lower()))
