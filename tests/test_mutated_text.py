"""Text mutated at random, packed or not: loaded to the last character, or refused in a line that names the place."""

import gzip
import json

import pytest
import zstandard

from tests.shared.mutations import count_outcomes, mutate_bytes, mutate_json, pack, refusal
from tests.shared.small_inputs import LINES, TEXT, lines_of, load, open_small, text_of, tokenise
from workload.errors import InputError
from workload.tasks.oscar import read_documents

pytestmark = pytest.mark.usefixtures("cache")
PLACES = (": line ", "(line ", "in line ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mutated")


@pytest.fixture(scope="module")
def task(folder):
    return open_small("oscar", folder, "--max_seq_length", "16")


def load_or_refuse(task, path):
    """The examples of a file; None where it was refused as it should be."""
    try:
        return load(task, str(path))
    except InputError as error:
        refusal(error, str(path), *PLACES)
        return None


def characters(texts):
    return "".join("".join(texts).split())


def check_blocks(task, examples):
    """The blocks' tokens say all texts in order, up to what is left behind the last whole block."""
    blocks = tokenise(task, examples).get("input_ids", [])
    said = task.tokenizer.decode([token for block in blocks for token in block], clean_up_tokenization_spaces=False)
    whole = "".join(text + task.tokenizer.eos_token for text in examples["text"])
    assert whole.startswith(said.rstrip("\ufffd"))  # the last block may end within a character


def test_lines_of_json_are_loaded_as_they_are_or_refused(task, folder):
    path = folder / "mutated.jsonl"

    def check(chance):
        content = mutate_bytes(chance, LINES)
        if chance.random() < 0.6:
            content = mutate_json(chance, json.loads(LINES.splitlines()[0])).replace(b"\n", b" ") + b"\n" + LINES
        path.write_bytes(content)
        examples = load_or_refuse(task, path)
        if examples is None:
            return "refused"
        documents = map(json.loads, lines_of(content))
        assert examples["text"] == [next(document[name] for name in ("content", "text")
                                         if isinstance(document.get(name), str)) for document in documents]
        check_blocks(task, examples)
        return "loaded"

    outcomes = count_outcomes(250, check)
    assert min(outcomes["loaded"], outcomes["refused"]) > 50, outcomes


def test_plain_text_is_loaded_to_the_last_character_or_refused(task, folder):
    path = folder / "mutated.txt"

    def check(chance):
        content = mutate_bytes(chance, TEXT)
        path.write_bytes(content)
        examples = load_or_refuse(task, path)
        if examples is None:
            return "refused"
        assert characters(examples["text"]) == characters(text_of(content))
        check_blocks(task, examples)
        return "loaded"

    outcomes = count_outcomes(150, check)
    assert min(outcomes["loaded"], outcomes["refused"]) > 30, outcomes


UNPACK = {".gz": gzip.decompress,
          ".zst": lambda content: zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True).read()}


@pytest.mark.parametrize("suffix", UNPACK)
def test_packed_text_is_loaded_whole_or_refused(task, folder, suffix):
    path = folder / f"mutated.txt{suffix}"

    def check(chance):
        content = pack(path.name, TEXT) * chance.randint(1, 2)
        if chance.random() < 0.9:
            content = mutate_bytes(chance, content)
        path.write_bytes(content)
        examples = load_or_refuse(task, path)
        if examples is None:
            return "refused"
        assert characters(examples["text"]) == characters(text_of(UNPACK[suffix](content)))
        assert characters(examples["text"]) in 2 * characters(TEXT.decode())
        return "loaded"

    outcomes = count_outcomes(100, check)
    assert outcomes["loaded"] > 5 and outcomes["refused"] > 40, outcomes


@pytest.mark.parametrize("suffix", UNPACK)
def test_a_packed_file_that_was_cut_off_is_no_shorter_file(folder, suffix):
    path = folder / f"long.txt{suffix}"
    content = pack(path.name, "".join(f"line {number * number}\n\n" for number in range(50_000)).encode())
    path.write_bytes(content + content)  # several parts one after the other, as parallel packers write them
    assert sum(1 for _ in read_documents(str(path))) == 100_000
    for part in (content[:len(content) // 2], content + content[:100], content[:-1]):
        path.write_bytes(part)
        with pytest.raises(InputError, match="cannot be unpacked"):
            list(read_documents(str(path)))


def test_the_place_of_what_is_not_utf_8_counts_from_the_files_beginning(folder):
    path = folder / "long.txt"
    path.write_bytes(b"A line.\n" * 20_000 + b"Caf\xe9.\n")  # behind many of the parts that are decoded at once
    with pytest.raises(InputError) as raised:
        list(read_documents(str(path)))
    assert str(raised.value) == f"{path}: not UTF-8 text (line 20001, byte 4)"
