"""python data/make_sample.py [--seed 0] [--output_dir data]

Writes the embedded sample: squad_v2/train.json and squad_v2/eval.json in the official SQuAD v2.0 format, and
tiny_bert/, the configuration and tokenizer of a small BERT. The same seed gives the same bytes.

A paragraph tells some facts about one invented thing, at most one of each kind (who, when, where, ...). It is
asked about two kinds that it tells and one that it does not: a third of the questions have no answer, and the
kind that is asked for decides, which is what a tiny BERT can learn from random weights.
"""

import argparse
import json
import random
import re
from itertools import product
from pathlib import Path
from string import ascii_lowercase, digits

from tokenizers import BertWordPieceTokenizer

PARAGRAPHS_PER_TOPIC = {"train": 67, "eval": 14}
VOCABULARY_SIZE = 1000
TOKENIZER_CONFIG = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
SPECIAL_TOKENS = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
MODEL_CONFIG = {
    "architectures": ["BertForQuestionAnswering"],
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,  # 0.1 learns far less in 300 steps, and takes half as long again on a CPU
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.08,  # with BERT's own 0.02 so narrow a model learns nothing in hundreds of steps
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}

# One row a topic: the words that the sentences and questions below take for it.
WORDS = ("topic", "name", "maker", "made", "shown", "kept", "parts", "stopped")
TOPICS = """
    painting | the painting {title} | patient artist | painted | first shown | kept | figures | hidden
    ship | the ship {title} | shipwright | built | launched | moored | cabins | delayed
    circus | the {title} Circus | former acrobat | started | first seen | based | wagons | sent home
    theatre | the {title} Theatre | young architect | designed | opened | located | seats | closed for weeks
    museum | the {title} Museum | famous explorer | founded | opened | found | rooms | closed for repairs
    library | the {title} Library | wealthy merchant | founded | completed | located | shelves | evacuated
    festival | the {title} Festival | village baker | started | first held | held | stalls | cancelled
    garden | the {title} Garden | royal gardener | planted | opened to visitors | found | trees | closed
    bridge | the {title} Bridge | clever engineer | designed | completed | located | lamps | closed to traffic
    hotel | the {title} Hotel | retired sailor | built | opened | located | beds | shut
""".strip().splitlines()
# A fact is marked [kind|long answer around its <short answer>]. {it} and {the} name the thing in full in a
# paragraph's first sentence and in questions; later {the} is "the painting", and {it} is that or "it".
SENTENCES = """
    {it} was {made} by [who|the {maker} <{person}>].
    [who|The {maker} <{person}>] {made} {it} with great care.
    [who|<{person}>, a {maker}], {made} {it} with the help of friends.
    {it} was {made} by [who|the {maker} <{person}>] and {shown} [when|in <{year}>].
    {it} was {shown} [when|in <{year}>].
    [when|In the summer of <{year}>] {it} was {shown} at last.
    {it} was {shown} [when|in the spring of <{year}>], later than planned.
    {it} is {kept} [where|in the town of <{town}>].
    {it} is {kept} [where|in <{town}>], not far from the sea.
    {it} is {kept} [where|in <{town}>] and has [count|<{number}> {parts}].
    {it} has [count|<{number}> {parts}].
    No fewer than [count|<{number}> {parts}] belong to {the}.
    {it} is famous for [what|its <{thing}>].
    Visitors and locals alike praise [what|the <{thing}>] of {the}.
    {it} was once {stopped} [why|because of <{trouble}>].
    [why|Because of <{trouble}>], {it} was once {stopped}.
""".strip().splitlines()
ASIDES = """
    Many stories are told about {the}.
    Children learn about {the} at school.
    Some people like {it}, others do not.
    Not everything that is said about {the} is true.
""".strip().splitlines()
QUESTIONS = {
    "who": ("Who {made} {it}?", "Who was it that {made} {it}?"),
    "when": ("When was {it} {shown}?", "In what year was {it} {shown}?"),
    "where": ("Where is {it} {kept}?", "In which town is {it} {kept}?"),
    "count": ("How many {parts} does {it} have?", "How many {parts} belong to {it}?"),
    "what": ("What is {it} famous for?", "What do people praise about {it}?"),
    "why": ("Why was {it} once {stopped}?", "For what reason was {it} {stopped}?"),
}

ADJECTIVES = """
    Silent Silver Golden Crimson Wandering Hidden Winter Lonely Laughing Patient Painted Distant Faithful
    Northern Broken Gentle Restless Blue White Black Midnight Morning Summer Lost Brave Singing Sleeping
    Proud"""
NOUNS = """
    Orchard Heron Lantern Fox Harbour Swan Bell Rose Lion Mirror Falcon River Meadow Star Raven Crown
    Thistle Compass Island Moon Sparrow Willow Anchor Otter Dolphin Candle Forest Comet Badger Owl"""
FIRST_NAMES = """
    Ada Alice Anton Clara Daniel David Edith Elena Emma Felix Frank George Grace Hanna Henry Hugo Ida Ivan
    Jacob Julia Karl Laura Leo Louise Lucy Martin Mary Max Nora Oscar Otto Paul Peter Rosa Ruth Samuel
    Thomas"""
SURNAME_STARTS = """
    Ash Berg Black Brad Brook Dal Eck Gran Green Hart Hol Kings Lang Lind Mar Nord Red Ros Sand Stan Stein
    Tal Thorn Vel Wald West Whit Win Wood Young"""
SURNAME_ENDS = "by ley man more son well"
TOWN_STARTS = """
    Amber Bracken Bright Cold Copper Deep Ell Fair Fern Frost Gold Harrow High Kirk Long Mill Moor Oak Pen
    Pine Reed Salt Sheep Stone Sun Swan Thistle White Wind Wren"""
TOWN_ENDS = "bridge combe field ford haven mouth port stead"
LOOKS = "antique carved colourful delicate foreign golden handmade painted polished silver tiny wooden"
THINGS = "baskets bells birds bowls boxes buttons clocks kites masks spoons toys whistles"
DEGREES = "dreadful great memorable serious severe sudden terrible"
TROUBLES = "drought fire flood frost landslide quarrel riot snowfall storm strike"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
ONES = "one two three four five six seven eight nine"
FACT = re.compile(r"\[(\w+)\|(.*?)\]")


def combine(first_words, second_words, glue=""):
    return [glue.join(pair) for pair in product(first_words.split(), second_words.split())]


def make_pools(generator):
    """The titles, surnames, towns, years, ... of each split: what one split uses, the other never does."""
    choices = {
        "title": combine(ADJECTIVES, NOUNS, " "),
        "surname": combine(SURNAME_STARTS, SURNAME_ENDS),
        "town": combine(TOWN_STARTS, TOWN_ENDS),
        "thing": combine(LOOKS, THINGS, " "),
        "trouble": [f"a {trouble}" for trouble in combine(DEGREES, TROUBLES, " ")],
        "year": list(range(1700, 1960)),
        "number": combine(TENS, ONES, "-"),
    }
    pools = {"train": {}, "eval": {}}
    for slot, values in choices.items():
        generator.shuffle(values)
        cut = len(values) // 5
        pools["eval"][slot], pools["train"][slot] = values[:cut], values[cut:]
    return pools


def choose_sentences(generator):
    number_of_facts = generator.choices((2, 3, 4), weights=(5, 3, 1))[0]
    wanted = set(generator.sample(list(QUESTIONS), number_of_facts))
    sentences = []
    for sentence in generator.sample(SENTENCES, len(SENTENCES)):
        kinds = {kind for kind, _ in FACT.findall(sentence)}
        if kinds <= wanted:
            sentences.append(sentence.strip())
            wanted -= kinds
    if generator.random() < 0.2:
        sentences.insert(generator.randrange(len(sentences) + 1), generator.choice(ASIDES).strip())
    return sentences


def strip_marks(text):
    return re.sub("[<>]", "", FACT.sub(r"\2", text))


def write_paragraph(words, generator):
    """A paragraph's text, and for each kind of fact in it the short and the long answer with their places."""
    sentences = []
    for template in choose_sentences(generator):
        the = f"the {words['topic']}" if sentences else words["name"]
        it = generator.choice((the, "it")) if sentences else the
        sentence = template.format(it=it, the=the, **words)
        sentences.append(sentence[0].upper() + sentence[1:])
    marked = " ".join(sentences)
    answers = {}
    for fact in FACT.finditer(marked):
        kind, long = fact.groups()
        lead, short, _ = re.split("[<>]", long)
        start = len(strip_marks(marked[: fact.start()]))
        answers[kind] = [
            {"text": short, "answer_start": start + len(lead)},
            {"text": strip_marks(long), "answer_start": start},
        ]
    return strip_marks(marked), answers


def write_questions(split, paragraph_id, words, answers, generator):
    told = [kind for kind in QUESTIONS if kind in answers]
    untold = [kind for kind in QUESTIONS if kind not in answers]
    kinds = generator.sample(told, 2) + generator.sample(untold, 1)
    generator.shuffle(kinds)
    name = words["name"].removeprefix(f"the {words['topic']} ")
    entries = []
    for kind in kinds:
        golds = answers.get(kind, [])
        if golds and split == "train":  # one answer, as officially; annotators do not always choose the same
            golds = generator.choices(golds, weights=(4, 1))
        entries.append({
            "id": f"{paragraph_id}-{kind}",
            "question": generator.choice(QUESTIONS[kind]).format(it=name, **words),
            "is_impossible": kind in untold,
            "answers": golds,
        })
    return entries


def write_split(split, pool, generator):
    articles = []
    for row in TOPICS:
        topic_words = dict(zip(WORDS, row.strip().split(" | "), strict=True))
        paragraphs = []
        for number in range(PARAGRAPHS_PER_TOPIC[split]):
            words = topic_words | {slot: generator.choice(values) for slot, values in pool.items()}
            words["title"] = pool["title"].pop()  # no two things share a name
            words["name"] = words["name"].format(**words)
            words["person"] = f"{generator.choice(FIRST_NAMES.split())} {words['surname']}"
            context, answers = write_paragraph(words, generator)
            paragraph_id = f"{split}-{words['topic']}-{number:02d}"
            questions = write_questions(split, paragraph_id, words, answers, generator)
            paragraphs.append({"context": context, "qas": questions})
        articles.append({"title": topic_words["topic"].capitalize(), "paragraphs": paragraphs})
    return {"version": "v2.0", "data": articles}


def train_vocabulary(texts):
    # The trainer numbers the letters it finds in a random order, which then decides between equally frequent
    # pieces: naming all of them as special tokens first makes its result the same in each run.
    letters = ascii_lowercase + digits
    fixed = [*SPECIAL_TOKENS.values(), *",.?-", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(texts, VOCABULARY_SIZE, special_tokens=fixed, show_progress=False)
    return tokenizer.get_vocab()


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_model_folder(folder, train):
    """What the Hub holds for a model, without the weights: they start at random."""
    paragraphs = [paragraph for article in train["data"] for paragraph in article["paragraphs"]]
    texts = [paragraph["context"] for paragraph in paragraphs]
    texts += [entry["question"] for paragraph in paragraphs for entry in paragraph["qas"]]
    vocabulary = train_vocabulary(texts)
    write_json(folder / "config.json", MODEL_CONFIG | {"vocab_size": len(vocabulary)})
    write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG | SPECIAL_TOKENS)
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    BertWordPieceTokenizer(vocab=vocabulary, lowercase=True).save(str(folder / "tokenizer.json"))


def main():
    parser = argparse.ArgumentParser(description="Writes the embedded sample.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()

    generator = random.Random(arguments.seed)
    pools = make_pools(generator)
    splits = {split: write_split(split, pools[split], generator) for split in ("train", "eval")}
    for split, content in splits.items():
        write_json(arguments.output_dir / "squad_v2" / f"{split}.json", content)
    write_model_folder(arguments.output_dir / "tiny_bert", splits["train"])


if __name__ == "__main__":
    main()
