"""Words that the samples are made of, and their split: a name of one split never occurs in the other."""

from itertools import product

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


def combine(first_words, second_words, glue=""):
    return [glue.join(pair) for pair in product(first_words.split(), second_words.split())]


def titles():
    return combine(ADJECTIVES, NOUNS, " ")


def surnames():
    return combine(SURNAME_STARTS, SURNAME_ENDS)


def towns():
    return combine(TOWN_STARTS, TOWN_ENDS)


def split_pools(choices, generator):
    """{slot: values} shuffled and divided into {"train": ..., "eval": ...}, a fifth of each slot's values for eval."""
    pools = {"train": {}, "eval": {}}
    for slot, values in choices.items():
        generator.shuffle(values)
        cut = len(values) // 5
        pools["eval"][slot], pools["train"][slot] = values[:cut], values[cut:]
    return pools


def draw(pool, generator):
    """One value for each slot of the pool, and a person whose surname is the pool's."""
    words = {slot: generator.choice(values) for slot, values in pool.items()}
    return words | {"person": f"{generator.choice(FIRST_NAMES.split())} {words['surname']}"}


def lines(text):
    """The lines of a block of sentence forms, without their indentation."""
    return [line.strip() for line in text.strip().splitlines()]


def listed(text):
    """The words or phrases between the commas of a text."""
    return text.split(", ")


def capitalize(sentence):
    """With a capital first letter; str.capitalize would make all others small."""
    return sentence[0].upper() + sentence[1:]
