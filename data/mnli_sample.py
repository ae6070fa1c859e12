"""mnli/train.tsv, dev_matched.tsv and dev_mismatched.tsv in GLUE's layout for MNLI, and tiny_bert_cased/, a small BERT.

A premise tells roughly how many guests, letters, ... there were: a few, dozens or hundreds. The hypothesis says that
there were more than a certain number, or, less often, fewer. It follows, is false, or is left open, as dozens may be
more than fifty or not. As in MNLI a hypothesis alone gives away something: more than five is seldom false, more than
five hundred seldom true. The rest needs both sentences.
"""

import random
from itertools import product
from string import punctuation

from model_folder import BERT_CONFIG, write_wordpiece_folder
from words import draw, lines, listed, surnames, towns

MODEL_CONFIG = {"architectures": ["BertForSequenceClassification"]} | BERT_CONFIG
PAIRS = {"train": 3000, "dev_matched": 300, "dev_mismatched": 300}
LABELS = ("entailment", "neutral", "contradiction")
COLUMNS = [
    "index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse",
    "sentence2_parse", "sentence1", "sentence2",
]
ANNOTATIONS = {"train": 1, "dev_matched": 5, "dev_mismatched": 5}  # label1, label2, ...: here all the same


# One row a genre: its name, the places that it tells about, and what is counted there.
MATCHED_GENRES = lines("""
    travel: hotel, country inn, campsite, mountain hut: guests, letters, suitcases
    culture: museum, puppet theatre, library, concert hall: visitors, paintings, lamps
    trade: market, bakery, bookshop, flower shop: customers, baskets, boxes
    nature: garden, park, zoo, bird island: children, trees, birds
    traffic: railway station, harbour, airport, bus stop: travellers, tickets, bicycles
""")
MISMATCHED_GENRES = lines("""
    health: hospital, pharmacy, eye clinic: patients, bottles, beds
    learning: school, college, music school: pupils, books, desks
    sport: stadium, gymnasium, swimming pool: players, balls, benches
    work: factory, office, sawmill: workers, machines, tools
    faith: chapel, monastery, temple: monks, candles, bells
""")
# Of few, dozens and hundreds: what a premise says, and with which numbers a hypothesis compares it.
AMOUNTS = (
    ("a few", "a handful of", "only a few"),
    ("dozens of", "several dozen", "some dozens of"),
    ("hundreds of", "several hundred", "many hundreds of"),
)
NUMBERS = (("four", "five", "six"), ("forty", "fifty", "sixty"), ("four hundred", "five hundred", "six hundred"))
PREMISE_FORMS = lines("""
    There were {counted} at the {place} of {town}.
    According to {person}, the {place} of {town} had {counted}.
    "There are {counted} at our {place}," wrote {person} from {town}.
    In {town}, {person} tells us, {counted} were at the {place}.
    When {person} came to {town}, there were {counted} at the {place}.
""")
HYPOTHESIS_FORMS = lines("""
    There were {compared} than {number} {things}.
    At the {place} there were {compared} than {number} {things}.
    {person} told of {compared} than {number} {things} at the {place}.
    The {place} of {town} had {compared} than {number} {things}.
""")
FEWER = 0.15  # the share of hypotheses that say "fewer than" instead of "more than"
TWO_COUNTS = 0.25  # the share of premises that also tell of how many of something else there were


def choose_levels(label, compared, generator):
    """Levels of AMOUNTS and NUMBERS, 0 to 2, between which this label holds."""
    is_label = {
        "entailment": int.__gt__ if compared == "more" else int.__lt__,
        "neutral": int.__eq__,
        "contradiction": int.__lt__ if compared == "more" else int.__gt__,
    }[label]
    return generator.choice([levels for levels in product(range(3), range(3)) if is_label(*levels)])


def write_pair(label, words, generator):
    """Premise and hypothesis, of which the second follows from the first, may be true or not, or is false."""
    compared = "fewer" if generator.random() < FEWER else "more"
    amount, number = choose_levels(label, compared, generator)
    counted = [f"{generator.choice(AMOUNTS[amount])} {words['things']}"]
    if generator.random() < TWO_COUNTS:
        counted.insert(generator.randrange(2), f"{generator.choice(generator.choice(AMOUNTS))} {words['other_things']}")
    premise = generator.choice(PREMISE_FORMS).format(counted=" and ".join(counted), **words)
    number = generator.choice(NUMBERS[number])
    return premise, generator.choice(HYPOTHESIS_FORMS).format(compared=compared, number=number, **words)


def write_split(split, genres, generator):
    """Rows of COLUMNS with the split's label columns and gold_label, no pair twice, a third of each label."""
    pool = {"surname": surnames(), "town": towns()}
    pairs = {}
    while len(pairs) < PAIRS[split]:
        label = LABELS[len(pairs) % len(LABELS)]
        genre, places, things = generator.choice(genres).split(": ")
        words = draw(pool, generator) | {"place": generator.choice(listed(places))}
        words["things"], words["other_things"] = generator.sample(listed(things), 2)
        pairs.setdefault(write_pair(label, words, generator), (genre, label))
    rows = list(pairs.items())
    generator.shuffle(rows)
    return [
        (str(index), str(index), f"{index}{label[0]}", genre, *[""] * 4, *pair, *[label] * (ANNOTATIONS[split] + 1))
        for index, (pair, (genre, label)) in enumerate(rows)
    ]


def write_sample(output_dir, seed):
    generator = random.Random(seed)
    genres = {"train": MATCHED_GENRES, "dev_matched": MATCHED_GENRES, "dev_mismatched": MISMATCHED_GENRES}
    splits = {split: write_split(split, genres[split], generator) for split in PAIRS}
    folder = output_dir / "mnli"
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        header = [*COLUMNS, *(f"label{number + 1}" for number in range(ANNOTATIONS[split])), "gold_label"]
        text = "".join("\t".join(row) + "\n" for row in [header, *rows])
        (folder / f"{split}.tsv").write_text(text, encoding="utf-8")
    places = [COLUMNS.index("sentence1"), COLUMNS.index("sentence2")]
    texts = [row[place] for row in splits["train"] for place in places]
    write_wordpiece_folder(output_dir / "tiny_bert_cased", MODEL_CONFIG, texts, punctuation, lowercase=False)
