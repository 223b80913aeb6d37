"""A batch computed in parts of similar lengths has the loss and the gradients of the whole."""

import torch
from torch.testing import assert_close

from flamboyance.data.batch import Batch, TrainingExample, collate
from flamboyance.processes import World
from flamboyance.training.step import by_length, summed_loss
from tests.model.families import make
from tests.training.batches import normalized

LENGTHS = (90, 12, 88, 10, 14, 91, 9, 60, 13, 8)


def uneven(side: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    examples = []
    for number, length in enumerate(LENGTHS):
        count = 1 + number % 3
        ids = torch.randint(3, 40, (length,), generator=generator)
        seen = torch.arange(length) * count // length + 1
        labels = ids.clone()
        labels[::4] = -100
        images = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
        examples.append(TrainingExample(ids, labels, seen, images))
    return collate(examples, 0)


def test_parts_have_every_row_once_and_less_padding() -> None:
    batch = uneven(4)
    parts = by_length(batch, least=256)
    assert 2 <= len(parts) <= 4
    assert sum(part.targets for part in parts) == batch.targets
    assert sum(len(part.images) for part in parts) == len(batch.images) == sum(batch.media_counts)
    assert sorted(int(n) for part in parts for n in part.attention_mask.sum(1)) == sorted(LENGTHS)
    assert sum(part.input_ids.numel() for part in parts) < 0.8 * batch.input_ids.numel()
    assert all(part.input_ids.numel() >= 256 for part in parts)
    assert all(part.attention_mask.any(0).all() for part in parts)
    for part in parts:
        for row in range(len(part.input_ids)):
            same = [
                r for r in range(len(LENGTHS)) if torch.equal(batch.labels[r, : part.labels.shape[1]], part.labels[row])
            ]
            (place,) = same
            first = sum(batch.media_counts[:place])
            mine = sum(part.media_counts[:row])
            count = part.media_counts[row]
            assert torch.equal(part.images[mine : mine + count], batch.images[first : first + count])


def test_equal_lengths_are_one_part() -> None:
    batch = uneven(4).rows([0, 2, 5])
    assert by_length(batch, least=256)[0] is batch


def test_the_loss_and_the_gradients_are_those_of_the_whole() -> None:
    model = make("llama").train()
    side = model.vision.image_size
    batch = uneven(side)
    for block in model.blocks:
        torch.nn.init.constant_(block.attention_gate, 0.5)
    found = []
    for parts in ([batch], by_length(batch, least=256)):
        model.zero_grad()
        total = torch.zeros(())
        for part in parts:
            loss = summed_loss(model, part, normalized, World().device)
            loss.backward()
            total += loss.detach()
        found.append((total, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (whole, grads), (divided, others) = found
    assert_close(divided, whole, atol=1e-2, rtol=1e-4)
    assert grads.keys() == others.keys()
    for name, gradient in grads.items():
        assert_close(others[name], gradient, atol=1e-3, rtol=1e-3, msg=name)
