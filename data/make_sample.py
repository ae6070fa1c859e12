"""python data/make_sample.py [--seed 0] [--output_dir data]

Writes the embedded sample: squad_v2/train.json and squad_v2/eval.json in the official SQuAD v2.0 format, and
tiny_bert/, the configuration and tokenizer of a small BERT. The same seed gives the same bytes.

A paragraph tells some facts about one invented thing, at most one of each kind (who, when, where, ...). It is
asked about two kinds that it tells and one that it does not, so a third of the questions have no answer, and
the kind that is asked for decides: this is what a tiny BERT can learn from random weights.
"""

import argparse
import json
import random
import re
from itertools import product
from pathlib import Path
from string import ascii_lowercase, digits

from tokenizers import BertWordPieceTokenizer

PARAGRAPHS_PER_TOPIC = {"train": 95, "eval": 19}
VOCABULARY_SIZE = 1000
SPECIAL_TOKENS = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
MODEL_CONFIG = {
    "architectures": ["BertForQuestionAnswering"],
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.08,  # with BERT's own 0.02 so small a model learns nothing in hundreds of steps
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}

# A fact is marked [kind|long answer around its <short answer>]. {it} and {the} name the thing in full in a
# paragraph's first sentence and in questions; later {the} is "the painting", and {it} is that or "it".
TOPICS = {
    "painting": ("the painting {title}", """
        {it} was painted by [who|the young artist <{person}>].
        [who|The artist <{person}>] finished {it} [when|in the summer of <{year}>].
        After many changes {it} was finished [when|in <{year}>].
        {it} can be seen [where|in the town hall of <{town}>].
        Visitors come to see {it} [where|in <{town}>], where a guide explains every detail.
        {it} shows [count|<{number}> people] on a frozen lake.
        {it} was later sold for [price|the sum of <{price}>], which surprised the experts.
        The foreground of {the} is filled with [what|a heap of <{thing}>].
        {it} was once hidden in a cellar [why|because of <{trouble}>].
        [why|Because of <{trouble}>], {it} was once hidden in a cellar.""", """
        who: Who painted {it}? / Which artist painted {it}?
        when: When was {it} finished? / In what year was {it} finished?
        where: Where can {it} be seen? / In which town can visitors see {it}?
        count: How many people does {it} show? / How many people are on the lake in {the}?
        price: How much was paid for {the}? / For what price was {it} sold?
        what: What fills the foreground of {the}? / What objects are in the foreground of {the}?
        why: Why was {it} hidden in a cellar? / For what reason was {it} hidden?"""),
    "novel": ("the novel {title}", """
        {it} was written by [who|the retired sailor <{person}>].
        [who|The teacher <{person}>] wrote {it} during the long evenings at home.
        {it} was published [when|in the autumn of <{year}>] and is [count|<{number}> pages] long.
        When {it} was published [when|in <{year}>], critics hardly noticed.
        {it} is set [where|in the seaside town of <{town}>].
        Most readers guess at once that {it} is set [where|in <{town}>].
        {it} fills [count|<{number}> pages] and has no pictures.
        A signed copy of {the} was sold for [price|the sum of <{price}>].
        The hero of {the} earns a living by selling [what|all kinds of <{thing}>].
        The printing of {the} was delayed [why|because of <{trouble}>].""", """
        who: Who wrote {it}? / Which author wrote {it}?
        when: When was {it} published? / In what year was {it} published?
        where: Where is {it} set? / In which town is {it} set?
        count: How many pages does {it} have? / How many pages long is {it}?
        price: How much was paid for a signed copy of {the}? / For what price was a copy of {the} sold?
        what: What does the hero of {the} sell? / What goods are sold by the hero of {the}?
        why: Why was the printing of {the} delayed? / For what reason was {it} printed late?"""),
    "ship": ("the ship {title}", """
        {it} was built by [who|the shipwright <{person}>].
        [who|<{person}>, an old shipwright], built {it} [where|in the harbour of <{town}>].
        {it} was built [where|in <{town}>] and painted dark green.
        {it} was launched [when|in <{year}>] before a cheerful crowd.
        [when|In the spring of <{year}>] {it} was launched with music and flags.
        {it} carried [count|<{number}> passengers] and [what|a cargo of <{thing}>].
        {it} had room for [count|<{number}> passengers], most of whom slept on deck.
        On a normal journey {it} carried [what|a cargo of <{thing}>].
        A ticket for {the} cost [price|no less than <{price}>].
        {it} once turned back halfway [why|because of <{trouble}>].""", """
        who: Who built {it}? / By whom was {it} built?
        when: When was {it} launched? / In what year was {it} launched?
        where: Where was {it} built? / In which town was {it} built?
        count: How many passengers did {it} carry? / How many passengers were there on {the}?
        price: How much did a ticket for {the} cost? / What was the price of a ticket for {the}?
        what: What did {it} carry? / What cargo did {it} carry?
        why: Why did {it} turn back? / For what reason did {it} turn back?"""),
    "theatre": ("the {title} Theatre", """
        {it} was designed by [who|the architect <{person}>].
        It is said that [who|<{person}>, a former actor], designed {it} in a single night.
        {it} opened [when|in the winter of <{year}>] with a comedy.
        {it} stands [where|in <{town}>] and first opened [when|in <{year}>].
        {it} stands beside the river [where|in the old town of <{town}>].
        There are [count|<{number}> seats] in {the}, all covered in red velvet.
        {it} has [count|<{number}> seats] and was built for [price|a total of <{price}>].
        Building {it} cost [price|the sum of <{price}>].
        From the ceiling of {the} hang [what|hundreds of <{thing}>].
        {it} was closed for a season [why|because of <{trouble}>].""", """
        who: Who designed {it}? / By whom was {it} designed?
        when: When did {it} open? / In what year did {it} open?
        where: Where does {it} stand? / In which town does {it} stand?
        count: How many seats does {it} have? / How many seats are there in {the}?
        price: How much did it cost to build {it}? / What was the price of building {it}?
        what: What hangs from the ceiling of {the}? / What objects hang from the ceiling of {the}?
        why: Why was {it} closed for a season? / For what reason was {it} closed?"""),
    "museum": ("the {title} Museum", """
        {it} was founded by [who|the retired doctor <{person}>].
        [who|The explorer <{person}>] founded {it} after a lifetime of travel.
        {it} opened its doors [when|in <{year}>].
        [when|In the spring of <{year}>] {it} opened its doors [where|in the town of <{town}>].
        {it} is found [where|in <{town}>], next to a bakery.
        The collection of {the} fills [count|<{number}> rooms].
        Visitors can get lost in {the}, for it has [count|<{number}> rooms].
        A ticket for {the} costs [price|only <{price}>].
        {it} is known for [what|a collection of <{thing}>].
        Guides at {the} are proud to show [what|the museum's <{thing}>].
        {it} once had to close [why|because of <{trouble}>].""", """
        who: Who founded {it}? / By whom was {it} founded?
        when: When did {it} open? / In what year did {it} open its doors?
        where: Where is {it}? / In which town is {it} found?
        count: How many rooms does {it} have? / How many rooms are there in {the}?
        price: How much does a ticket for {the} cost? / What is the price of a ticket for {the}?
        what: What is collected in {the}? / What objects can be seen in {the}?
        why: Why did {it} have to close? / For what reason did {it} once close?"""),
    "festival": ("the {title} Festival", """
        {it} was started by [who|the village baker <{person}>].
        [who|The singer <{person}>] started {it} with a few friends.
        {it} was first held [when|in <{year}>] and has been popular ever since.
        [when|In the summer of <{year}>] {it} was held for the first time.
        {it} takes place [where|in the market square of <{town}>].
        Every year {it} takes place [where|in <{town}>] and brings together [count|<{number}> musicians].
        At {the} you can hear [count|<{number}> musicians] playing at once.
        A day at {the} costs [price|only <{price}>], with soup and bread included.
        The stalls at {the} sell [what|all sorts of <{thing}>].
        [why|Because of <{trouble}>], {it} was once cancelled.
        {it} was cancelled only once, [why|because of <{trouble}>].""", """
        who: Who started {it}? / By whom was {it} started?
        when: When was {it} first held? / In what year was {it} held for the first time?
        where: Where does {it} take place? / In which town is {it} held?
        count: How many musicians play at {the}? / How many musicians come to {the}?
        price: How much does a day at {the} cost? / What is the price of a day at {the}?
        what: What do the stalls at {the} sell? / What goods can be bought at {the}?
        why: Why was {it} cancelled? / For what reason was {it} once cancelled?"""),
    "prize": ("the {title} Prize", """
        {it} was created by [who|the wealthy merchant <{person}>].
        [who|<{person}>, a famous pianist], created {it} to help young musicians.
        {it} was first awarded [when|in <{year}>].
        [when|In the autumn of <{year}>] {it} was awarded for the first time.
        {it} is presented [where|in the concert hall of <{town}>] and is worth [price|about <{price}>].
        Every spring {it} is presented [where|in <{town}>].
        {it} is worth [price|a sum of <{price}>], paid on the same evening.
        No fewer than [count|<{number}> students] compete for {the}.
        {it} is won by one of [count|<{number}> students] who compete for it.
        The winner of {the} also receives [what|a box of <{thing}>].
        Once {it} was not awarded at all [why|because of <{trouble}>].""", """
        who: Who created {it}? / By whom was {it} created?
        when: When was {it} first awarded? / In what year was {it} awarded for the first time?
        where: Where is {it} presented? / In which town is {it} presented?
        count: How many students compete for {the}? / How many students hope to win {it}?
        price: How much is {it} worth? / What sum of money does the winner of {the} get?
        what: What does the winner of {the} receive in a box? / What objects are given to the winner of {the}?
        why: Why was {it} once not awarded? / For what reason was {it} not awarded?"""),
}
ASIDES = (
    "Many stories are told about {the}.",
    "Children learn about {the} at school.",
    "Some people like {it} and others do not, but nobody forgets {it}.",
    "Not everything that is said about {the} is true.",
    "Several songs have been written about {the}.",
)

TITLES = (
    "Silent Silver Golden Crimson Wandering Hidden Winter Lonely Laughing Patient Painted Distant Faithful "
    "Northern Broken Gentle Restless Blue White Black Midnight Morning Summer Lost Brave Singing Sleeping Proud",
    "Orchard Heron Lantern Fox Harbour Swan Bell Rose Lion Mirror Falcon River Garden Star Raven Crown Meadow "
    "Compass Island Moon Sparrow Willow Thistle Anchor Otter Dolphin Candle Forest Comet Badger",
)
FIRST_NAMES = (
    "Ada Alice Anton Clara Daniel David Edith Elena Emma Felix Frank George Grace Hanna Henry Hugo Ida Ivan Jacob "
    "Julia Karl Laura Leo Louise Lucy Martin Mary Max Nora Oscar Otto Paul Peter Rosa Ruth Samuel Simon Thomas"
)
SURNAMES = "Ash Black Brad Green Hart Hol Kings Lang Mar Red Stan Tal Thorn Whit Win Wood", "ley man more son well"
TOWNS = (
    "Amber Bracken Ell Fair Fern Gold Harrow Kirk Mill Oak Otter Pen Salt Stone Winter Wren",
    "bridge combe field ford haven mouth port stead",
)
THINGS = (
    "antique carved colourful delicate foreign golden handmade painted polished silver tiny wooden",
    "baskets bells birds bowls boxes buttons kites lamps masks spoons toys whistles",
)
TROUBLES = (
    "dreadful great memorable serious severe sudden terrible",
    "drought fire flood frost landslide quarrel riot snowfall storm strike",
)
FACT = re.compile(r"\[(\w+)\|(.*?)\]")
KINDS = ("who", "when", "where", "count", "price", "what", "why")


def combine(word_lists, glue):
    return [glue.join(words) for words in product(*(words.split() for words in word_lists))]


def make_pools(generator):
    """The titles, surnames, towns, years, ... of each split; what one split uses, the other never does."""
    choices = {
        "title": combine(TITLES, " "),
        "surname": combine(SURNAMES, ""),
        "town": combine(TOWNS, ""),
        "thing": combine(THINGS, " "),
        "trouble": [f"a {trouble}" for trouble in combine(TROUBLES, " ")],
        "year": list(range(1700, 1960)),
        "number": list(range(21, 400)),
        "price": [f"{amount} {coins}" for amount in range(21, 900) for coins in ("crowns", "florins", "guilders")],
    }
    pools = {"train": {}, "eval": {}}
    for name, values in choices.items():
        generator.shuffle(values)
        cut = len(values) // 5
        pools["eval"][name], pools["train"][name] = values[:cut], values[cut:]
    return pools


def strip_marks(text):
    return re.sub("[<>]", "", FACT.sub(r"\2", text))


def write_paragraph(topic, name, sentences, pool, generator):
    """A paragraph's text, and for each kind of fact in it the short and the long answer with their places."""
    wanted = set(generator.sample(KINDS, generator.choices((2, 3, 4, 5), weights=(4, 3, 2, 1))[0]))
    chosen = []
    for sentence in generator.sample(sentences, len(sentences)):
        kinds = {kind for kind, _ in FACT.findall(sentence)}
        if kinds <= wanted:
            chosen.append(sentence)
            wanted -= kinds
    if generator.random() < 0.4:
        chosen.insert(generator.randrange(len(chosen) + 1), generator.choice(ASIDES))

    values = {slot: generator.choice(values) for slot, values in pool.items()}
    values["person"] = f"{generator.choice(FIRST_NAMES.split())} {values['surname']}"
    for place, sentence in enumerate(chosen):
        the = name if place == 0 else f"the {topic}"
        it = generator.choice((the, "it")) if place else name
        sentence = sentence.format(it=it, the=the, **values)
        chosen[place] = sentence[0].upper() + sentence[1:]

    marked = " ".join(chosen)
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


def write_split(split, pool, generator):
    articles = []
    number = 0
    for topic, (full_name, sentences, questions) in TOPICS.items():
        sentences = [line.strip() for line in sentences.strip().splitlines()]
        questions = dict(line.strip().split(": ") for line in questions.strip().splitlines())
        paragraphs = []
        for _ in range(PARAGRAPHS_PER_TOPIC[split]):
            name = full_name.format(title=pool["title"].pop())
            context, answers = write_paragraph(topic, name, sentences, pool, generator)
            told = [kind for kind in KINDS if kind in answers]
            untold = [kind for kind in KINDS if kind not in answers]
            asked = generator.sample(told, 2) + generator.sample(untold, 1)
            entries = []
            for kind in generator.sample(asked, len(asked)):
                golds = answers.get(kind, [])
                if golds and split == "train":  # one answer, as officially; annotators do not always agree on it
                    golds = generator.choices(golds, weights=(4, 1))
                question = generator.choice(questions[kind].split(" / ")).format(it=name, the=name)
                entries.append({"id": f"{split}-{number:04d}", "question": question,
                                "is_impossible": kind in untold, "answers": golds})
                number += 1
            paragraphs.append({"context": context, "qas": entries})
        articles.append({"title": topic.capitalize(), "paragraphs": paragraphs})
    return {"version": "v2.0", "data": articles}


def train_vocabulary(texts):
    # The trainer numbers the letters it finds in a random order, which then decides between equally frequent
    # pieces: naming all of them as special tokens first makes its result the same in each run.
    letters = ascii_lowercase + digits + ",.?'"
    fixed = [*SPECIAL_TOKENS.values(), *letters, *(f"##{letter}" for letter in letters)]
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(texts, VOCABULARY_SIZE, min_frequency=2, special_tokens=fixed, show_progress=False)
    return trained.get_vocab()


def write_json(path, content, indent=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


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
