"""The mini world: same seed, same pixels; what is said is what is shown; nothing held out is trained on."""

import numpy as np
import pytest

from flamboyance.mini.world import sayings
from flamboyance.mini.world import scenes as world
from flamboyance.mini.world.words import COLORS, SHAPES, build_tokenizer, draw_words, made_up_words


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_seed_gives_the_same_pixels():
    first, again = (world.render([world.scene(r), world.digit_scene(r, "train")]) for r in (rng(3), rng(3)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, world.render([world.scene(rng(4)), world.digit_scene(rng(4), "train")]))


def test_a_scene_renders_alike_alone_and_among_others():
    scenes = [world.scene(r) for r in [rng(1)] for _ in range(20)] + [world.digit_scene(rng(2), "test")]
    together = world.render(scenes)
    for row, scene in enumerate(scenes):
        assert np.array_equal(together[row], np.asarray(world.picture(scene)))


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_captions_match_pixels(color, shape):
    found = [world.scene(rng(seed), 1, color=color, shape=shape) for seed in range(6)]
    for image, scene in zip(world.render(found).astype(int), found, strict=True):
        thing = scene.things[0]
        assert sayings.caption(scene) == f"a {thing.size} {color} {shape}"
        inked = abs(image - np.array(world.RGB[color])).max(-1) < 12
        across, down = np.nonzero(inked)[1] + 0.5, np.nonzero(inked)[0] + 0.5
        assert abs(across - thing.x).max() <= thing.radius + 1 and abs(down - thing.y).max() <= thing.radius + 1
        assert ("left", "middle", "right")[int(across.mean() // (world.SIDE / 3))] == thing.column
        extent = across.max() - across.min() + 1
        assert (extent > 14.5) == (thing.size == "large"), extent


def test_things_are_named_from_left_to_right():
    for seed in range(30):
        scene = world.scene(rng(seed), 3)
        assert [thing.x for thing in scene.things] == sorted(thing.x for thing in scene.things)
        assert [part.split()[-1] for part in sayings.caption(scene).replace(" and", ",").split(",")] == [
            thing.shape for thing in scene.things
        ]


def test_questions_have_one_answer():
    for seed in range(200):
        scene = world.scene(rng(seed))
        for question in sayings.questions(scene, rng(seed)):
            words = question.text.rstrip("?").split()
            if question.kind == "yes-no":
                present = any((t.color, t.shape) == (words[-2], words[-1]) for t in scene.things)
                assert question.answer == ("yes" if present else "no")
            elif question.kind in ("color", "shape", "size"):
                named = [t for t in scene.things if {t.color, t.shape, t.column} & set(words)]
                assert len(named) == 1 and getattr(named[0], question.kind) == question.answer, question


@pytest.mark.parametrize("kind", ["color", "shape", "size", "position", "count", "yes-no"])
def test_a_question_of_a_kind(kind):
    scene, question = sayings.draw_question(rng(), kind)
    assert question.kind == kind and scene.things
    assert sayings.draw_question(rng(), kind) == (scene, question)


def test_a_question_about_a_digit():
    scene, question = sayings.draw_question(rng(), digits=1.0, split="test")
    assert question == sayings.Question("digit", sayings.DIGIT_QUESTION, scene.digit.value)


def test_made_up_words_are_held_out():
    train, test = set(made_up_words("train")), set(made_up_words("test"))
    assert not train & test and len(test) > 200
    assert {word[:2] for word in test} <= {word[:2] for word in train}  # every syllable was met, only not the pair
    assert {word[2:] for word in test} <= {word[2:] for word in train}
    assert set(draw_words(rng(), 4, "test")) <= test


def test_digit_splits_are_fixed_and_disjoint():
    (train, _), (test, values) = world.digits("train"), world.digits("test")
    assert (len(train), len(test)) == (1437, 360)
    assert not {scan.tobytes() for scan in train} & {scan.tobytes() for scan in test}
    assert set(values) == set(range(10))
    assert {world.digit_scene(rng(s), "test").digit.index for s in range(300)} <= set(range(1437, 1797))


def test_the_tokenizer_spells_back_what_it_reads():
    tokenizer = build_tokenizer()
    for seed in range(50):
        scene = world.scene(rng(seed))
        texts = [sayings.caption(scene), *(q.text for q in sayings.questions(scene, rng(seed)))]
        for text in [*texts, *draw_words(rng(seed), 2, "test"), "the digit 7"]:
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
    for word in [*made_up_words("train"), *made_up_words("test")]:
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 2


def bound(scene, kind):
    """What a made-up word is bound to in a picture."""
    if kind == "digit":
        return scene.digit.value
    (thing,) = scene.things
    return (thing.color, thing.shape) if kind == "thing" else getattr(thing, kind)


@pytest.mark.parametrize("kind", sayings.BINDING_KINDS)
@pytest.mark.parametrize("shots", [0, 1, 2, 4, 8])
def test_binding_episodes_bind_each_word_to_one_value(kind, shots):
    for seed in range(30):
        episode = sayings.binding_episode(rng(seed), shots, kind, "test")
        pairs = [*episode.demonstrations, (episode.query, episode.answer)]
        values = [(bound(scene, kind), word) for scene, word in pairs]
        assert len({value for value, _ in values}) == len({word for _, word in values}) == len(set(values))
        assert len(episode.demonstrations) == shots and episode.answer in episode.candidates
        if shots >= 2:
            counts = [sum(word == c for _, word in episode.demonstrations) for c in episode.candidates]
            assert counts == [shots // 2, shots // 2]


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'taste'"):
        sayings.binding_episode(rng(), 2, "taste", "test")
