"""oscar/train.jsonl and oscar/eval.jsonl in OSCAR 23.01's layout, and tiny_gpt2/, a small GPT-2.

A document looks like a web page: a title, a line of links, some paragraphs about one invented place or event, and a
last line. Sentences repeat their forms and a page repeats its names, which is what a tiny model can learn.
"""

import json
import random

from model_folder import write_byte_level_folder
from words import capitalize, draw, lines, listed, split_pools, surnames, titles, towns

CHARACTERS = {"train": 225_000, "eval": 28_000}  # of content
MODEL_CONFIG = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_layer": 4,
    "n_embd": 128,
    "n_head": 4,
    "n_inner": 256,
    "n_positions": 256,
    "activation_function": "gelu_new",
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "initializer_range": 0.05,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}

# One row a kind of page: what it is about, who runs it, what it offers, what one does there.
KIND_SLOTS = ("topic", "keeper", "goods", "deed")
KINDS = lines("""
    Bakery | baker | rolls, rye bread and plum cakes | taste
    Bookshop | bookseller | novels, old maps and children's books | read
    Hotel | innkeeper | rooms, breakfast and bicycles | rest
    Theatre | director | plays, puppet shows and concerts | listen
    Garden | gardener | roses, herbs and apple trees | walk
    Museum | curator | ship models, coins and clocks | look around
    Festival | organiser | music, dances and a market | dance
    Rowing Club | coach | boats, lessons and summer camps | row
""")
CHOICES = {
    "weekday": listed("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
    "month": listed("January, February, March, April, May, June, July, August, September, October, November, December"),
    "season": listed("spring, summer, autumn, winter"),
    "street": listed("Mill Street, Church Lane, Harbour Road, Market Square, Station Road, Bridge Street"),
    "year": list(range(1890, 2020)),
    "hour": list(range(7, 12)),
    "evening": list(range(16, 23)),
    "number": list(range(2, 90)),
    "price": list(range(3, 40)),
}
OPENINGS = lines("""
    Welcome to the {title} {topic} in {town}!
    The {title} {topic} is the only one of its kind in {town}.
    {person} opened the {title} {topic} in {year}.
    Since {year} there has been a {topic} in {town}: the {title}.
""")
SENTENCES = lines("""
    You find us at {number} {street}, not far from the river.
    Our {keeper}, {person}, has been with us since {year}.
    We offer {goods}.
    We are open from {hour}:00 to {evening}:30, every day except {weekday}.
    In {month} we are closed for repairs.
    A ticket costs {price} euros; children under {hour} pay nothing.
    "I come here to {deed} every {weekday}," says {other}, who lives in {town}.
    Come and {deed} with us, alone or with your friends.
    The house on {street} was built in {year} and has {number} windows.
    Last {season} more than {number} guests came from {town} and from other towns.
    The {keeper} of the {title} {topic} is looking for help in {month}.
    If you have a question, please write to {person} or call us on {weekday} morning.
    Nobody knows {town} better than {person}.
    In {season}, when the days are {length}, we also sell {goods}.
    There is a bus from the station in {town} every {number} minutes.
    {other} wrote about us in the newspaper: "You must see the {title} {topic}."
    Many of our guests come back every {season} to {deed}.
    On {weekday} evening {other} tells stories about {town}.
""")
LENGTHS = {"spring": "getting longer", "summer": "long", "autumn": "getting shorter", "winter": "short"}
LINKS = "Home | News | Opening hours | Contact"
LAST_LINES = lines("""
    Posted by {person} on {weekday}, {day} {month}.
    Tags: {town}, {topic}, {season}
    Read more about the {title} {topic}
    No comments yet. Be the first!
""")


def write_document(pool, generator):
    """(content, address) of a page: its lines, and where it might have been found."""
    words = draw(pool, generator) | {slot: generator.choice(values) for slot, values in CHOICES.items()}
    words |= dict(zip(KIND_SLOTS, generator.choice(KINDS).split(" | "), strict=True))
    words["other"] = draw(pool, generator)["person"]
    words["day"] = generator.randint(1, 28)

    def say(form):  # numbers, days and seasons change from sentence to sentence, the page's names stay
        fresh = {slot: generator.choice(values) for slot, values in CHOICES.items()}
        return capitalize(form.format(**words | fresh, length=LENGTHS[fresh["season"]]))

    forms = generator.sample(SENTENCES, generator.randint(5, 12))
    paragraphs = [[say(generator.choice(OPENINGS))]]
    for form in forms:
        if len(paragraphs[-1]) >= generator.randint(2, 5):
            paragraphs.append([])
        paragraphs[-1].append(say(form))
    heading = f"{words['title']} {words['topic']}, {words['town']}"
    links = [LINKS] if generator.random() < 0.5 else []
    content = [heading, *links, *(" ".join(sentences) for sentences in paragraphs), say(generator.choice(LAST_LINES))]
    site = f"{words['title']}-{words['topic']}".lower().replace(" ", "-")
    return "\n".join(content), f"https://{site}.example/{words['town'].lower()}"


def as_record(content, address):
    """A line of OSCAR's, with those of its fields that are known of an invented page."""
    return {
        "content": content,
        "warc_headers": {
            "warc-type": "conversion",
            "warc-target-uri": address,
            "warc-identified-content-language": "eng",
        },
        "metadata": {"identification": {"label": "en", "prob": 1.0}, "quality_warnings": None},
    }


def write_split(characters, pool, generator):
    records = []
    while characters > 0:
        content, address = write_document(pool, generator)
        records.append(as_record(content, address))
        characters -= len(content)
    return records


def write_sample(output_dir, seed):
    generator = random.Random(seed)
    pools = split_pools({"title": titles(), "surname": surnames(), "town": towns()}, generator)
    splits = {split: write_split(CHARACTERS[split], pools[split], generator) for split in CHARACTERS}
    folder = output_dir / "oscar"
    folder.mkdir(parents=True, exist_ok=True)
    for split, records in splits.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    write_byte_level_folder(output_dir / "tiny_gpt2", MODEL_CONFIG, [record["content"] for record in splits["train"]])
