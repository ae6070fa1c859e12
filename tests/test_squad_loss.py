"""Batches, the model, and a sample's loss, whatever it is batched with."""

import math

import pytest
import torch

pytestmark = pytest.mark.usefixtures("cache")


def collate(task, rows, length):
    """A batch of rows of the training data, made as `Batches` makes it."""
    return task.collate(task.samples("train").with_format("arrow")[rows], length)


def test_collate_pads_on_the_right_and_masks_the_padding(story):
    rows = story.features["train"][[0, 23]]
    assert rows["length"][0] < rows["length"][1]
    inputs, labels = collate(story, [0, 23], 56)
    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == dict.fromkeys(
        ("input_ids", "token_type_ids", "attention_mask"), (2, 56))
    assert all(tensor.dtype == torch.int64 for tensor in [*inputs.values(), *labels.values()])
    assert set(labels) == set(story.label_names)
    for row, length in enumerate(rows["length"]):
        padding = 56 - length
        assert inputs["input_ids"][row].tolist() == rows["input_ids"][row] + [story.tokenizer.pad_token_id] * padding
        assert inputs["token_type_ids"][row].tolist() == rows["token_type_ids"][row] + [0] * padding
        assert inputs["attention_mask"][row].tolist() == [1] * length + [0] * padding
    assert labels["start"].tolist() == rows["start"] and labels["end"].tolist() == rows["end"]
    assert labels["attention_mask"].tolist() == inputs["attention_mask"].tolist()


@pytest.fixture(scope="module")
def model(story):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # quicker for so small a model
    yield story.build_model().eval()
    torch.set_num_threads(threads)


def losses(story, model, rows, length):
    inputs, labels = collate(story, rows, length)
    with torch.no_grad():
        return story.loss(story.logits(model, inputs), labels)


def test_a_loss_does_not_depend_on_what_it_is_batched_with(story, model):
    rows = [0, 6, len(story.features["train"]) - 1]
    lengths = [story.features["train"][row]["length"] for row in rows]
    alone = torch.cat([losses(story, model, [row], length) for row, length in zip(rows, lengths, strict=True)])
    assert len(set(lengths)) > 1
    for length in (48, 200):
        torch.testing.assert_close(losses(story, model, rows, length), alone, rtol=0, atol=2e-6)


def test_without_padding_the_loss_is_the_models_own(story, model):
    for row in (0, 1, 10):
        feature = story.features["train"][row]
        inputs, labels = collate(story, [row], feature["length"])
        with torch.no_grad():
            own = model(**inputs, start_positions=labels["start"], end_positions=labels["end"]).loss
        assert losses(story, model, [row], feature["length"]).item() == pytest.approx(own.item(), abs=1e-6)


def test_loss_has_known_values_and_is_computed_in_fp32(story):
    logits = torch.zeros(2, 6, 2, dtype=torch.bfloat16)
    logits[:, 4:] = 50  # padding of the first sample, tokens of the second
    labels = {"start": torch.tensor([1, 4]), "end": torch.tensor([2, 0]),
              "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])}
    loss = story.loss(logits, labels)
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx([math.log(4), (math.log(2) + 50 + math.log(2)) / 2])


def test_the_same_seed_gives_the_same_model(story, model):
    again = story.build_model()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
