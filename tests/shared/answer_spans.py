"""Which characters the tokens of an answer have to cover, by rules written independently of the code's."""

import unicodedata

DROPPED = {"Mn", "Cc", "Cf", "Cn", "Co", "Zs", "Zl", "Zp"}  # kinds of characters that BERT's uncased tokenizer drops
SPECIAL = {"[UNK]", "[SEP]", "[CLS]", "[PAD]", "[MASK]"}


def is_dropped(character: str) -> bool:
    return unicodedata.category(character) in DROPPED or character == "\ufffd"


def plain(text: str) -> str:
    """A text as its tokens spell it."""
    held = (each for each in unicodedata.normalize("NFD", text) if not is_dropped(each))
    return "".join(map(str.lower, held))


def held_part(start: int, answer: str) -> tuple[int, int]:
    """Start and end of an answer without the dropped characters at its ends; equal if nothing is left."""
    held = [place for place, character in enumerate(answer, start) if not is_dropped(character)]
    return (held[0], held[-1] + 1) if held else (start, start)


def check_windows(task, examples: dict[str, list], features: dict[str, list]) -> int:
    """Check the labels of all windows against their examples' answers; returns how many point at one."""
    pointing = 0
    for row, example in enumerate(features["example_index"]):
        offsets, ids = [tuple(place) for place in features["offsets"][row]], features["input_ids"][row]
        first, last = features["start"][row], features["end"][row]
        answers, context = examples["answers"][example], examples["context"][example]
        begin, end = held_part(answers["answer_start"][0], answers["text"][0]) if answers["text"] else (0, 0)
        inside = [place for place in offsets if place[0] >= 0]
        if (first, last) == (0, 0):
            assert begin == end or not inside or inside[0][0] > begin or inside[-1][1] < end, "the window holds it"
            continue
        pointing += 1
        covered = context[offsets[first][0]:offsets[last][1]]
        pieces = task.tokenizer.convert_ids_to_tokens(ids[first:last + 1])
        assert offsets[first][0] <= begin < offsets[first][1] and offsets[last][0] < end <= offsets[last][1]
        if not SPECIAL & set(pieces):
            said = "".join(piece.removeprefix("##") for piece in pieces)
            at_edge = offsets[first] == inside[0] or offsets[last] == inside[-1]  # a Korean syllable may be cut there
            assert said in plain(covered) if at_edge else said == plain(covered)
            assert plain(answers["text"][0]) in plain(covered)
    return pointing
