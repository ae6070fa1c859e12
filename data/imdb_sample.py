"""imdb/train.csv and imdb/eval.csv (columns text,label), and tiny_encoder/, a small Transformer encoder classifier.

A review names an invented film, says some things about it, and mostly ends with a verdict. One list of words is not
enough: what is praised or blamed may be negated ("never boring"), a mixed review says something of the other kind
before the verdict, and verdicts of both kinds use nearly the same words.
"""

import csv
import random

from model_folder import write_wordpiece_folder
from words import capitalize, draw, lines, listed, split_pools, surnames, titles, towns

REVIEWS = {"train": 1600, "eval": 400}
PUNCTUATION = ",.?-!:;'\"()"
MODEL_CONFIG = {
    "model_type": "encoder_classifier",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_dropout_prob": 0.0,
    "initializer_range": 0.05,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}

# The label 0 is negative, 1 positive: OPINIONS[label] and VERDICTS[label] are what such a review says.
OPINIONS = (
    listed("boring, dull, clumsy, predictable, awful, flat, weak, silly, lifeless, careless, confused, poor"),
    listed("gripping, moving, charming, clever, wonderful, fresh, superb, delightful, warm, honest, witty, fine"),
)
NEGATIONS = ("not", "never", "not at all", "far from", "anything but", "by no means")
CHOICES = {
    "kind": listed("comedy, thriller, western, drama, romance, mystery, musical, satire"),
    "season": listed("spring, summer, autumn, winter, week, month"),
    "ordinal": listed("first, second, third, fourth, fifth"),
    "relative": listed("brother, sister, aunt, uncle, neighbour, grandmother"),
    "hero": listed("detective, sailor, teacher, baker, widow, painter, nurse, pilot, farmer, clerk, thief, dancer"),
    "minutes": list(range(70, 180)),
    "deed": lines("""
        looks for a lost brother
        inherits a lighthouse
        falls in love with a rival
        has to hide a letter
        returns to the village after twenty years
        wins a horse at cards
        opens a small hotel
        finds a map in an old coat
    """),
}
ASPECTS = listed("acting, plot, music, dialogue, ending, script, camera, pace, cast, humour")
OPENINGS = lines("""
    I saw {title} in {town} last {season}.
    "{title}" is a {kind} about a {hero} who {deed}.
    In {title}, directed by {person}, a {hero} {deed}.
    {person} wrote and directed {title}, a {kind}.
    {title} is the {ordinal} film by {person}: a {hero} {deed}.
    My {relative}, once a {hero}, took me to see {title}, a {kind}.
    So this is {title}, the new {kind} with {person}!
    We watched "{title}", a {kind} from {town}, on a rainy evening.
""")
ASIDES = lines("""
    It runs for {minutes} minutes.
    Most of it was filmed in {town}.
    The story, in short: a {hero} {deed}.
    {person} plays the {hero}.
    "Who are you?" asks the {hero}, and the story begins.
    I had read the book (by {person}) before.
    The cinema was half full.
""")
STATEMENTS = lines("""
    The {aspect} is {opinion}.
    The {aspect} is {opinion}, and the {other_aspect} is {opinion}.
    I found the {aspect} {opinion}.
    The {aspect} was {opinion}; the {other_aspect}, too, was {opinion}.
    {person} is {opinion} as the {hero}.
    From the first scene to the last it is {opinion}.
    You may have heard that the {aspect} is {opposite}. It is {opinion}.
""")
CONCESSIONS = lines("""
    Admittedly, the {aspect} is {opinion}.
    Some say that the {aspect} is {opinion}.
    At first, the {aspect} seems {opinion}.
    The {aspect} may be {opinion}, but that is not what counts.
    A newspaper called the {aspect} "{opinion}".
""")
VERDICTS = (
    lines("""
        I would not recommend it to anybody.
        It is not worth the ticket.
        I was glad when it was over.
        I wanted to like it, and could not.
        You may well miss it.
        I would not see it again, even if it were for free.
        My friends had warned me, and they were right.
        If you see only one film this year, see another one.
        I left before the end.
        Better stay at home!
    """),
    lines("""
        I would recommend it to anybody.
        It is well worth the ticket.
        I was not glad when it was over.
        I wanted to like it, and I could.
        You may not miss it.
        I would see it again, even if it were not for free.
        My friends had warned me, and they were not right.
        If you see only one film this year, see this one.
        I did not leave before the end.
        Better not stay at home!
    """),
)


def choose_opinion(label, generator):
    """An opinion of this label's kind, or the negation of one of the other kind."""
    if generator.random() < 0.15:
        return f"{generator.choice(NEGATIONS)} {generator.choice(OPINIONS[1 - label])}"
    return generator.choice(OPINIONS[label])


def say(form, label, words, generator):
    """The sentence that this form makes in a review, or in a part of one, of this label's kind."""
    while "{opinion}" in form:
        form = form.replace("{opinion}", choose_opinion(label, generator), 1)
    aspect, other_aspect = generator.sample(ASPECTS, 2)
    opposite = generator.choice(OPINIONS[1 - label])
    return capitalize(form.format(aspect=aspect, other_aspect=other_aspect, opposite=opposite, **words))


def write_review(label, pool, generator):
    words = draw(pool, generator) | {slot: generator.choice(values) for slot, values in CHOICES.items()}
    has_verdict = generator.random() < 0.75
    number_of_statements = generator.choices((1, 2, 3), weights=(3, 3, 2))[0]
    middle = [say(form, label, words, generator) for form in generator.sample(STATEMENTS, number_of_statements)]
    if generator.random() < 0.25:
        middle.append(say(generator.choice(CONCESSIONS), 1 - label, words, generator))
    if generator.random() < 0.4:
        middle.append(generator.choice(ASIDES).format(**words))
    generator.shuffle(middle)
    verdict = [generator.choice(VERDICTS[label])] if has_verdict else []
    return " ".join([generator.choice(OPENINGS).format(**words), *middle, *verdict])


def write_split(number_of_reviews, pool, generator):
    """[(text, label), ...], no text twice, half of the labels 0 and half 1."""
    reviews = {}
    while len(reviews) < number_of_reviews:
        label = len(reviews) % 2
        reviews.setdefault(write_review(label, pool, generator), label)
    rows = list(reviews.items())
    generator.shuffle(rows)
    return rows


def write_sample(output_dir, seed):
    generator = random.Random(seed)
    pools = split_pools({"title": titles()}, generator)
    shared = {"surname": surnames(), "town": towns()}
    splits = {split: write_split(REVIEWS[split], pools[split] | shared, generator) for split in REVIEWS}
    folder = output_dir / "imdb"
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("text", "label"), *rows])
    texts = [text for text, _ in splits["train"]]
    write_wordpiece_folder(output_dir / "tiny_encoder", MODEL_CONFIG, texts, PUNCTUATION)
