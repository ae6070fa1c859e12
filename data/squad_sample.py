"""squad_v2/train.json and squad_v2/eval.json in the official SQuAD v2.0 format, and tiny_bert/, a small BERT.

A paragraph tells some facts about one invented thing, at most one of each kind (who, when, where, ...). It is
asked about two kinds that it tells and one that it does not: a third of the questions have no answer, and the
kind that is asked for decides, which is what a tiny BERT can learn from random weights.
"""

import random
import re

from model_folder import BERT_CONFIG, write_json, write_wordpiece_folder
from words import FIRST_NAMES, capitalize, combine, lines, split_pools, surnames, titles, towns

PARAGRAPHS_PER_TOPIC = {"train": 67, "eval": 14}
MODEL_CONFIG = {"architectures": ["BertForQuestionAnswering"]} | BERT_CONFIG

# One row a topic: the words that the sentences and questions below take for it.
WORDS = ("topic", "name", "maker", "made", "shown", "kept", "parts", "stopped")
TOPICS = lines("""
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
""")
# A fact is marked [kind|long answer around its <short answer>]. {it} and {the} name the thing in full in a
# paragraph's first sentence and in questions; later {the} is "the painting", and {it} is that or "it".
SENTENCES = lines("""
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
""")
ASIDES = lines("""
    Many stories are told about {the}.
    Children learn about {the} at school.
    Some people like {it}, others do not.
    Not everything that is said about {the} is true.
""")
QUESTIONS = {
    "who": ("Who {made} {it}?", "Who was it that {made} {it}?"),
    "when": ("When was {it} {shown}?", "In what year was {it} {shown}?"),
    "where": ("Where is {it} {kept}?", "In which town is {it} {kept}?"),
    "count": ("How many {parts} does {it} have?", "How many {parts} belong to {it}?"),
    "what": ("What is {it} famous for?", "What do people praise about {it}?"),
    "why": ("Why was {it} once {stopped}?", "For what reason was {it} {stopped}?"),
}

LOOKS = "antique carved colourful delicate foreign golden handmade painted polished silver tiny wooden"
THINGS = "baskets bells birds bowls boxes buttons clocks kites masks spoons toys whistles"
DEGREES = "dreadful great memorable serious severe sudden terrible"
TROUBLES = "drought fire flood frost landslide quarrel riot snowfall storm strike"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
ONES = "one two three four five six seven eight nine"
FACT = re.compile(r"\[(\w+)\|(.*?)\]")


def make_pools(generator):
    """The titles, surnames, towns, years, ... of each split: what one split uses, the other never does."""
    choices = {
        "title": titles(),
        "surname": surnames(),
        "town": towns(),
        "thing": combine(LOOKS, THINGS, " "),
        "trouble": [f"a {trouble}" for trouble in combine(DEGREES, TROUBLES, " ")],
        "year": list(range(1700, 1960)),
        "number": combine(TENS, ONES, "-"),
    }
    return split_pools(choices, generator)


def choose_sentences(generator):
    number_of_facts = generator.choices((2, 3, 4), weights=(5, 3, 1))[0]
    wanted = set(generator.sample(list(QUESTIONS), number_of_facts))
    sentences = []
    for sentence in generator.sample(SENTENCES, len(SENTENCES)):
        kinds = {kind for kind, _ in FACT.findall(sentence)}
        if kinds <= wanted:
            sentences.append(sentence)
            wanted -= kinds
    if generator.random() < 0.2:
        sentences.insert(generator.randrange(len(sentences) + 1), generator.choice(ASIDES))
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
        sentences.append(capitalize(sentence))
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
        topic_words = dict(zip(WORDS, row.split(" | "), strict=True))
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


def write_sample(output_dir, seed):
    generator = random.Random(seed)
    pools = make_pools(generator)
    splits = {split: write_split(split, pools[split], generator) for split in ("train", "eval")}
    for split, content in splits.items():
        write_json(output_dir / "squad_v2" / f"{split}.json", content)
    paragraphs = [paragraph for article in splits["train"]["data"] for paragraph in article["paragraphs"]]
    texts = [paragraph["context"] for paragraph in paragraphs]
    texts += [entry["question"] for paragraph in paragraphs for entry in paragraph["qas"]]
    write_wordpiece_folder(output_dir / "tiny_bert", MODEL_CONFIG, texts)
