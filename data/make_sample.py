"""python data/make_sample.py [--seed 0] [--output_dir data]

Writes the embedded samples: a small data set for each task in the format of the full one, and for each a folder
with the configuration and the tokenizer of a small model. The same seed gives the same bytes.
"""

import argparse
from pathlib import Path

import imdb_sample
import mnli_sample
import oscar_sample
import squad_sample


def main():
    parser = argparse.ArgumentParser(description="Writes the embedded samples.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    for sample in (squad_sample, imdb_sample, mnli_sample, oscar_sample):
        sample.write_sample(arguments.output_dir, arguments.seed)


if __name__ == "__main__":
    main()
