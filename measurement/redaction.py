"""Hides tokens and passwords in what is recorded, because recorded runs are shared."""

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "<hidden>"
SECRET_WORDS = {"token", "key", "apikey", "secret", "password", "passwd", "credential", "credentials", "auth"}
SHORTEST_SECRET = 8  # characters; a shorter value is probably a common word, which would be hidden everywhere
USER_IN_URL = re.compile(r"(?<=://)[^\s/@]+(?=@)")  # https://user:token@host
# Hugging Face's have letters and digits only: "hf_trainer-4dev-batch32-fp32-seed0" is a run's name.
KNOWN_TOKENS = re.compile(r"\b(?:(?:hf_|gh[pousr]_|AKIA)[A-Za-z0-9]{16,}|(?:github_pat_|glpat-|sk-)[A-Za-z0-9_-]{16,})")


def without_secrets(content: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """A copy of texts, lists and dictionaries with tokens and passwords replaced.

    Hidden are the values of environment variables and dictionary keys whose names contain token, key, secret, password
    or the like; users and passwords in URLs; and tokens with a known prefix (Hugging Face, GitHub, GitLab, AWS, ...).
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
