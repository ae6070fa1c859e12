"""Files mutated at random, in the same way in every session, for the tests of code that reads files."""

import collections
import copy
import gzip
import json
import unicodedata
from collections.abc import Callable, Iterator
from random import Random

import zstandard
from hypothesis import HealthCheck, given, settings, strategies

from workload.errors import InputError

VALUES = [None, True, False, 0, -1, 7, 2**31, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf"), "", " ", "\0", "0",
          "a\nb", "\u2028", "\ufeff", "\ud83d", "\U0001f600", "\u200b", "x" * 1000, [], {}, [[]], [None]]
CHARACTERS = ["\U0001f600", "\U0001d49c", "\u0301", "\u05e9", "\u202e", "\u200b", "\u200d", "\ufeff", "\u2028", "\x85",
              "\u00a0", "\0", "\ud55c", "\u0130", "[SEP]", "<|endoftext|>", "|", "$x$", "\ud83d", "\n", " ", ""]
SNIPPETS = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0", b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n", b"\xe2\x80\xa8", b"\x0c",
            b'"', b'""', b"'", b",", b"\t", b"|", b"{", b"}", b"[", b"]", b":", b"\\", b"\\ud83d", b"-", b"1", b"null",
            b"1" * 5000, b"[" * 100_000, b"1e999", b"NaN", b"a,a", b" ", b"$x$"]
NEWLINES = [b"\r\n", b"\r", b"\n\n", b"\xe2\x80\xa8", b"\xc2\x85", b"\x0b", b""]


def count_outcomes(cases: int, check: Callable[[Random], str]) -> dict[str, int]:
    """Call `check` with `cases` sources of chance; returns how often it had each outcome."""
    outcomes = collections.Counter()

    @settings(max_examples=cases, derandomize=True, deadline=None, database=None,
              suppress_health_check=[HealthCheck.too_slow])
    @given(strategies.randoms(note_method_calls=True, use_true_random=False))
    def case(chance: Random) -> None:
        outcomes[check(chance)] += 1

    case()
    return outcomes


def refusal(error: InputError, path: str, *places: str) -> str:
    """The line that an error prints: it has to name the file, and a place in it or what is wrong with the whole."""
    line = str(error)
    assert len(line.splitlines()) == 1 and line.startswith(path) and len(line) < len(path) + 500
    whole = ("cannot be unpacked", "cannot be read", "holds no ")
    assert any(place in line.removeprefix(path) for place in (*places, *whole)), line
    return line


def nodes(document) -> Iterator[tuple]:
    """Every node of a JSON document, as its parent and its key there."""
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield document, key
        yield from nodes(document[key])


def mutate_text(chance: Random, text: str) -> str:
    """Insert, remove or respell characters."""
    if chance.random() < 0.2:
        return unicodedata.normalize(chance.choice(["NFC", "NFD", "NFKD"]), text)
    place = chance.randint(0, len(text))
    return text[:place] + chance.choice(CHARACTERS) + text[place + chance.randint(0, 2):]


def mutate_json(chance: Random, document) -> bytes:
    """Nodes replaced, deleted, duplicated, renamed, exchanged, wrapped or changed a little."""
    document = copy.deepcopy(document)
    for _ in range(chance.randint(1, 3)):
        parent, key = chance.choice([*nodes(document)] or [({"data": document}, "data")])
        other, other_key = chance.choice([*nodes(document)] or [(parent, key)])
        match chance.choice(["replace", "delete", "duplicate", "exchange", "wrap", "change", "change"]):
            case "replace":
                parent[key] = copy.deepcopy(chance.choice(VALUES))
            case "delete":
                del parent[key]
            case "duplicate" if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(parent[key]))
            case "duplicate":
                parent[str(other_key)] = copy.deepcopy(parent[key])
            case "exchange":
                here, there = copy.deepcopy(parent[key]), copy.deepcopy(other[other_key])
                parent[key], other[other_key] = there, here
            case "wrap":
                parent[key] = chance.choice([[parent[key]], {"data": parent[key]}, json.dumps(parent[key])])
            case "change" if isinstance(parent[key], str):
                parent[key] = mutate_text(chance, parent[key])
            case "change" if isinstance(parent[key], int):
                parent[key] += chance.randint(-3, 3)
    indent = chance.choice([None, 1])
    return json.dumps(document, ensure_ascii=chance.random() < 0.5, indent=indent).encode("utf-8", "surrogatepass")


def mutate_bytes(chance: Random, content: bytes) -> bytes:
    """Bytes flipped, cut out, repeated, put in or cut off."""
    for _ in range(chance.randint(1, 3)):
        place, count = chance.randint(0, len(content)), chance.randint(1, 30)
        before, behind = content[:place], content[place:]
        match chance.choice(["flip", "insert", "insert", "cut", "repeat", "truncate", "newlines", "mark"]):
            case "flip":
                content = before + bytes(byte ^ (1 << chance.randrange(8)) for byte in behind[:1]) + behind[1:]
            case "insert":
                content = before + chance.choice(SNIPPETS) + behind
            case "cut":
                content = before + behind[count:]
            case "repeat":
                content = before + behind[:count] + behind
            case "truncate":
                content = before
            case "newlines":
                content = content.replace(b"\n", chance.choice(NEWLINES))
            case "mark":
                content = b"\xef\xbb\xbf" + content
    return content


def mutate_table(chance: Random, content: bytes, separator: bytes) -> bytes:
    """Cells and columns added, dropped, exchanged or emptied; separators within quotes count as any other."""
    rows = [line.split(separator) for line in content.split(b"\n")]
    for _ in range(chance.choice([1, 1, 2])):
        column, other = (chance.randrange(len(rows[0]) or 1) for _ in range(2))
        chosen = rows if chance.random() < 0.5 else [chance.choice(rows)]
        kind = chance.choice(["drop", "repeat", "exchange", "empty", "change", "change", "change"])
        for row in chosen:
            if len(row) <= max(column, other):
                continue
            match kind:
                case "drop":
                    del row[column]
                case "repeat":
                    row.insert(other, row[column])
                case "exchange":
                    row[column], row[other] = row[other], row[column]
                case "empty":
                    row[column] = b""
                case "change":
                    text = mutate_text(chance, row[column].decode("utf-8", "surrogatepass"))
                    row[column] = text.encode("utf-8", "surrogatepass")
    return b"\n".join(separator.join(row) for row in rows)


def pack(name: str, content: bytes) -> bytes:
    """The content as a file of this name holds it. gzip and zstandard add a checksum, as the usual commands do."""
    if name.endswith(".gz"):
        return gzip.compress(content, mtime=0)
    return zstandard.ZstdCompressor(write_checksum=True).compress(content) if name.endswith(".zst") else content
