"""Folders with what the Hub holds for a model, without the weights: they start at random."""

import json
from string import ascii_letters, ascii_lowercase, digits

from tokenizers import BertWordPieceTokenizer, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY_SIZE = 1000
SPECIAL_TOKENS = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
END_OF_TEXT = "<|endoftext|>"
BERT_CONFIG = {
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


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def train_wordpiece(texts, punctuation, lowercase):
    # The trainer numbers the letters it finds in a random order, which then decides between equally frequent
    # pieces: naming all of them as special tokens first makes its result the same in each run.
    letters = (ascii_lowercase if lowercase else ascii_letters) + digits
    fixed = [*SPECIAL_TOKENS.values(), *punctuation, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = BertWordPieceTokenizer(lowercase=lowercase)
    tokenizer.train_from_iterator(texts, VOCABULARY_SIZE, special_tokens=fixed, show_progress=False)
    return tokenizer.get_vocab()


def write_wordpiece_folder(folder, config, texts, punctuation=",.?-", lowercase=True):
    """A BERT's tokenizer, trained on `texts`, and `config` with its vocabulary size."""
    vocabulary = train_wordpiece(texts, punctuation, lowercase)
    tokenizer_config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase, "model_max_length": 512}
    write_json(folder / "config.json", config | {"vocab_size": len(vocabulary)})
    write_json(folder / "tokenizer_config.json", tokenizer_config | SPECIAL_TOKENS)
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    BertWordPieceTokenizer(vocab=vocabulary, lowercase=lowercase).save(str(folder / "tokenizer.json"))


def write_byte_level_folder(folder, config, texts):
    """GPT-2's kind of tokenizer, trained on `texts`, and `config` with its vocabulary size and end-of-text token.

    It begins with all 256 bytes, in a fixed order: no text is unknown to it, and the result is the same in each run.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    end = tokenizer.token_to_id(END_OF_TEXT)
    vocabulary = {"vocab_size": tokenizer.get_vocab_size(), "bos_token_id": end, "eos_token_id": end}
    write_json(folder / "config.json", config | vocabulary)
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "model_max_length": config["n_positions"],
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
    })
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
