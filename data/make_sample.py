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
SPECIAL_TOKENS = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
MODEL_CONFIG = {
    "architectures": ["BertForQuestionAnswering"],
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.08,  # with BERT's own 0.02 so small a model learns nothing in hundreds of steps
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}

# The words that the sentences and questions below take for each topic; its full name stands in "name".
TOPICS = {
    "painting": dict(name="the painting {title}", maker="young artist", made="painted", shown="first shown",
                     kept="kept", parts="figures", stopped="moved to a cellar"),
    "novel": dict(name="the novel {title}", maker="retired sailor", made="penned", shown="published",
                  kept="set", parts="pages", stopped="taken out of the shops"),
    "ship": dict(name="the ship {title}", maker="shipwright", made="built", shown="launched",
                 kept="moored", parts="cabins", stopped="kept in harbour"),
    "theatre": dict(name="the {title} Theatre", maker="architect", made="designed", shown="opened",
                    kept="located", parts="seats", stopped="closed for a season"),
    "museum": dict(name="the {title} Museum", maker="famous explorer", made="founded", shown="opened",
                   kept="found", parts="rooms", stopped="closed for repairs"),
    "library": dict(name="the {title} Library", maker="wealthy merchant", made="founded", shown="completed",
                    kept="located", parts="shelves", stopped="emptied in a hurry"),
    "festival": dict(name="the {title} Festival", maker="village baker", made="started", shown="first held",
                     kept="held", parts="stalls", stopped="cancelled"),
    "garden": dict(name="the {title} Garden", maker="old gardener", made="planted", shown="opened to visitors",
                   kept="found", parts="trees", stopped="closed to visitors"),
    "bridge": dict(name="the {title} Bridge", maker="engineer", made="designed", shown="completed",
                   kept="located", parts="lamps", stopped="closed to traffic"),
    "hotel": dict(name="the {title} Hotel", maker="former actor", made="built", shown="opened",
                  kept="located", parts="beds", stopped="shut for a month"),
}
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
    As many as [count|<{number}> {parts}] have been counted in {the}.
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
    "count": ("How many {parts} does {it} have?", "How many {parts} are there in {it}?"),
    "what": ("What is {it} famous for?", "What do people praise about {it}?"),
    "why": ("Why was {it} once {stopped}?", "For what reason was {it} {stopped}?"),
}

TITLES = (
    "Silent Silver Golden Crimson Wandering Hidden Winter Lonely Laughing Patient Painted Distant Faithful "
    "Northern Broken Gentle Restless Blue White Black Midnight Morning Summer Lost Brave Singing Sleeping Proud",
    "Orchard Heron Lantern Fox Harbour Swan Bell Rose Lion Mirror Falcon River Meadow Star Raven Crown Thistle "
    "Compass Island Moon Sparrow Willow Anchor Otter Dolphin Candle Forest Comet Badger Owl",
)
FIRST_NAMES = (
    "Ada Alice Anton Clara Daniel David Edith Elena Emma Felix Frank George Grace Hanna Henry Hugo Ida Ivan Jacob "
    "Julia Karl Laura Leo Louise Lucy Martin Mary Max Nora Oscar Otto Paul Peter Rosa Ruth Samuel Simon Thomas"
)
SURNAMES = (
    "Ash Berg Black Brad Brook Dal Eck Gran Green Hart Hol Kings Lang Lind Mar Nord Red Ros Sand Stan Stein Tal "
    "Thorn Vel Wald West Whit Win Wood Young",
    "by ley man more son well",
)
TOWNS = (
    "Amber Bracken Bright Cold Copper Deep Ell Fair Fern Frost Gold Harrow High Kirk Long Mill Moss Oak Pen Pine "
    "Reed Salt Sheep Stone Sun Swan Thistle White Wind Wren",
    "bridge combe field ford haven mouth port stead",
)
THINGS = (
    "antique carved colourful delicate foreign golden handmade painted polished silver tiny wooden",
    "baskets bells birds bowls boxes buttons clocks kites masks spoons toys whistles",
)
TROUBLES = (
    "dreadful great memorable serious severe sudden terrible",
    "drought fire flood frost landslide quarrel riot snowfall storm strike",
)
NUMBERS = "twenty thirty forty fifty sixty seventy eighty ninety", "one two three four five six seven eight nine"
FACT = re.compile(r"\[(\w+)\|(.*?)\]")


def combine(word_lists, glue):
    return [glue.join(words) for words in product(*(words.split() for words in word_lists))]


def make_pools(generator):
    """The titles, surnames, towns, years, ... of each split: what one split uses, the other never does."""
    choices = {
        "title": combine(TITLES, " "),
        "surname": combine(SURNAMES, ""),
        "town": combine(TOWNS, ""),
        "thing": combine(THINGS, " "),
        "trouble": [f"a {trouble}" for trouble in combine(TROUBLES, " ")],
        "year": list(range(1700, 1960)),
        "number": combine(NUMBERS, "-"),
    }
    pools = {"train": {}, "eval": {}}
    for name, values in choices.items():
        generator.shuffle(values)
        cut = len(values) // 5
        pools["eval"][name], pools["train"][name] = values[:cut], values[cut:]
    return pools


def strip_marks(text):
    return re.sub("[<>]", "", FACT.sub(r"\2", text))


def choose_sentences(generator):
    wanted = set(generator.sample(list(QUESTIONS), generator.choices((2, 3, 4, 5), weights=(9, 6, 2, 1))[0]))
    sentences = []
    for sentence in generator.sample(SENTENCES, len(SENTENCES)):
        kinds = {kind for kind, _ in FACT.findall(sentence)}
        if kinds <= wanted:
            sentences.append(sentence)
            wanted -= kinds
    if generator.random() < 0.25:
        sentences.insert(generator.randrange(len(sentences) + 1), generator.choice(ASIDES))
    return sentences


def write_paragraph(topic, words, generator):
    """A paragraph's text, and for each kind of fact in it the short and the long answer with their places."""
    sentences = []
    for template in choose_sentences(generator):
        the = f"the {topic}" if sentences else words["name"]
        it = generator.choice((the, "it")) if sentences else the
        sentence = template.strip().format(it=it, the=the, **words)
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


def write_questions(split, name, words, answers, generator):
    told = [kind for kind in QUESTIONS if kind in answers]
    untold = [kind for kind in QUESTIONS if kind not in answers]
    asked = generator.sample(told, 2) + generator.sample(untold, 1)
    entries = []
    for kind in generator.sample(asked, len(asked)):
        golds = answers.get(kind, [])
        if golds and split == "train":  # one answer, as officially; annotators do not always agree on it
            golds = generator.choices(golds, weights=(4, 1))
        question = generator.choice(QUESTIONS[kind]).format(it=name, **words)
        entries.append({"question": question, "is_impossible": not golds, "answers": golds})
    return entries


def write_split(split, pool, generator):
    articles = []
    number = 0
    for topic, topic_words in TOPICS.items():
        paragraphs = []
        for _ in range(PARAGRAPHS_PER_TOPIC[split]):
            words = topic_words | {slot: generator.choice(values) for slot, values in pool.items()}
            words["name"] = words["name"].format(title=pool["title"].pop())
            words["person"] = f"{generator.choice(FIRST_NAMES.split())} {words['surname']}"
            context, answers = write_paragraph(topic, words, generator)
            name = words["name"].removeprefix(f"the {topic} ")
            entries = write_questions(split, name, words, answers, generator)
            for entry in entries:
                entry["id"] = f"{split}-{number:04d}"
                number += 1
            paragraphs.append({"context": context, "qas": entries})
        articles.append({"title": topic.capitalize(), "paragraphs": paragraphs})
    return {"version": "v2.0", "data": articles}


def train_vocabulary(texts):
    # The trainer numbers the letters it finds in a random order, which then decides between equally frequent
    # pieces: naming all of them as special tokens first makes its result the same in each run.
    letters = ascii_lowercase + digits + ",.?-"
    fixed = [*SPECIAL_TOKENS.values(), *letters, *(f"##{letter}" for letter in letters)]
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(texts, VOCABULARY_SIZE, min_frequency=2, special_tokens=fixed, show_progress=False)
    return trained.get_vocab()


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()

    generator = random.Random(arguments.seed)
    pools = make_pools(generator)
    splits = {split: write_split(split, pools[split], generator) for split in ("train", "eval")}
    for split, content in splits.items():
        write_json(arguments.output_dir / "squad_v2" / f"{split}.json", content)

    paragraphs = [paragraph for article in splits["train"]["data"] for paragraph in article["paragraphs"]]
    texts = [paragraph["context"] for paragraph in paragraphs]
    texts += [entry["question"] for paragraph in paragraphs for entry in paragraph["qas"]]
    vocabulary = train_vocabulary(texts)
    model_dir = arguments.output_dir / "tiny_bert"
    write_json(model_dir / "config.json", MODEL_CONFIG | {"vocab_size": len(vocabulary)})
    write_json(model_dir / "tokenizer_config.json", SPECIAL_TOKENS | {
        "tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512,
    })
    (model_dir / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    BertWordPieceTokenizer(vocab=vocabulary, lowercase=True).save(str(model_dir / "tokenizer.json"))


if __name__ == "__main__":
    main()
