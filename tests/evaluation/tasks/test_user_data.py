"""A user's own CSV, JSONL or folder as a task."""

import json

import pytest
from PIL import Image

from flamboyance import templates
from flamboyance.evaluation import shots
from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.run import Settings
from flamboyance.evaluation.tasks import user_data
from flamboyance.templates import Template
from tests.evaluation.tasks.files import picture, put


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b.jpg", "in/c.png"):
        picture(tmp_path / name)
    return tmp_path


def csv(folder, *lines):
    return put(folder / "mine.csv", "\n".join(lines) + "\n")


def jsonl(folder, *records):
    return put(folder / "mine.jsonl", "".join(json.dumps(one) + "\n" for one in records))


def test_labels(folder):
    task = user_data.load(csv(folder, "image, label,note", "a.jpg,dog,x", "b.jpg,cat,y", "in/c.png, dog ,z"))
    assert task.name == "mine" and task.labels == ("cat", "dog")
    assert task.template == templates.classification and task.support == task.queries
    assert [one.references for one in task.queries] == [("dog",), ("cat",), ("dog",)]
    assert task.queries[2].image == folder / "in" / "c.png"
    assert task.metric.name == user_data.metrics.TOP_1.name


def test_a_stop_that_an_answer_contains_is_none(folder):
    task = user_data.load(csv(folder, "image,question,answer", "a.jpg,what?,Shorts", "b.jpg,what?,a cat"))
    assert task.template.stops == ("Question", "Answer")
    assert task.read(" Shorts<|endofchunk|>Question:who?", True) == "Shorts"
    assert task.read("a catQuestion:who?", True) == "a cat"
    task = user_data.load(csv(folder, "image,text", "a.jpg,Output of a printer", "b.jpg,a cat"))
    assert task.template.stops == () and task.read("Output of a printer", True) == "Output of a printer"
    given = Template("<image>Short:{answer}", stops=("Short",))
    assert user_data.load(csv(folder, "image,answer", "a.jpg,Shorts"), template=given).template == given


def test_labels_with_questions(folder):
    task = user_data.load(
        csv(folder, "image,question,label", "a.jpg,Is it?,yes", "b.jpg,Is it?,no"), protocol="openflamingo"
    )
    assert task.labels == ("no", "yes") and task.template == templates.vqa and task.separator == "\n"
    assert task.queries[0].asked == ("Is it?",)


def test_captions(folder):
    task = user_data.load(jsonl(folder, {"image": "a.jpg", "captions": ["A.", "B."]}, {"image": "b.jpg", "text": "C."}))
    assert [(one.answer, one.references) for one in task.queries] == [("A.", ("A.", "B.")), ("C.", ("C.",))]
    assert task.metric is user_data.metrics.CIDER and task.labels is None


def test_answers_by_exact_match(folder):
    task = user_data.load(csv(folder, "image,question,answer", 'a.jpg,"What, then?",a dog'))
    assert task.queries[0].asked == ("What, then?",) and task.queries[0].references == ("a dog",)
    assert task.metric is user_data.metrics.EXACT_MATCH
    assert task.post_process(" a dog, a cat ") == "a dog, a cat"


def test_ten_answers_by_vqa_accuracy(folder):
    answers = ["b"] * 4 + ["a"] * 6
    task = user_data.load(jsonl(folder, {"image": "a.jpg", "question": "Q?", "answers": answers}))
    assert task.metric is user_data.metrics.VQA_ACCURACY_OFFICIAL and task.max_new_tokens == 5
    assert task.queries[0].references == tuple(answers) and task.queries[0].answer == "a"
    nine = user_data.load(jsonl(folder, {"image": "a.jpg", "question": "Q?", "answers": answers[:9]}))
    assert nine.metric is user_data.metrics.EXACT_MATCH


def test_numbers_may_be_labels(folder):
    assert user_data.load(jsonl(folder, {"image": "a.jpg", "label": 7}, {"image": "b.jpg", "label": 10})).labels == (
        "10",
        "7",
    )


def test_support_from_another_file(folder):
    shown = put(folder / "shown.csv", "image,label\nin/c.png,bird\n")
    task = user_data.load(csv(folder, "image,label", "a.jpg,dog"), support=shown)
    assert [one.answer for one in task.support] == ["bird"] and task.labels == ("bird", "dog")


def test_a_template_names_columns(folder):
    file = csv(folder, "image,where,label", "a.jpg,left,dog", "b.jpg,right,cat")
    task = user_data.load(file, template=Template("<image>On the {where} is a {animal}"))
    assert task.template.demonstration(*task.support[0].asked, task.support[0].answer).startswith(
        "<image>On the left is a dog"
    )


def test_a_folder_of_labels(tmp_path):
    for name in ("pets/dog/1.jpg", "pets/dog/2.jpg", "pets/cat/1.jpg", "pets/.hidden.jpg"):
        picture(tmp_path / name)
    task = user_data.load(tmp_path / "pets")
    assert task.name == "pets" and [one.answer for one in task.queries] == ["cat", "dog", "dog"]
    with pytest.raises(ValueError, match=r"more than one folder below"):
        user_data.load(tmp_path)


def test_a_folder_of_texts(folder):
    for name in ("a.txt", "b.txt", "in/c.txt"):
        put(folder / name, f"text of {name}\n")
    task = user_data.load(folder)
    assert [one.answer for one in task.queries] == ["text of a.txt", "text of b.txt", "text of in/c.txt"]


def test_images_outside_of_the_folder(folder):
    picture(folder.parent / "secret.jpg")
    file = csv(folder, "image,label", "a.jpg,dog", "../secret.jpg,cat")
    with pytest.raises(ValueError, match=r"line 3.*\.\./secret\.jpg.*outside.*mine\.csv"):
        user_data.load(file)
    assert len(user_data.load(file, outside=True).queries) == 2
    link = folder / "link.jpg"
    link.symlink_to(folder.parent / "secret.jpg")
    with pytest.raises(ValueError, match=r"link\.jpg.*outside"):
        user_data.load(csv(folder, "image,label", "link.jpg,dog"))


def test_bytes_before_a_spreadsheets_csv(folder):
    (folder / "mine.csv").write_bytes(b"\xef\xbb\xbfimage,label\r\na.jpg,dog\r\nb.jpg,cat\r\n")
    assert user_data.load(folder / "mine.csv").labels == ("cat", "dog")


@pytest.mark.parametrize(
    "lines, message",
    [
        ([], r"mine\.csv.*empty.*image,label"),
        (["image,label"], r"mine\.csv.*empty"),
        (["picture,label", "a.jpg,dog"], "line 2.*'image'.*picture, label"),
        (["image,what", "a.jpg,dog"], "image,what.*image,label.*image,text"),
        (["image|label", "a.jpg|dog"], r"line 2.*'image'.*image\|label"),
        (["image,label,label", "a.jpg,dog,cat"], "line 1.*twice.*label"),
        (
            ["image,label", "a.jpg,dog,cat"],
            "line 2.*3 .*2 .*image,label.*'a.jpg', 'dog', 'cat'",
        ),
        (["image,label", "a.jpg"], "line 2.*1 .*2 .*image,label.*'a.jpg'"),
        (["image,label", "a.jpg,"], "line 2.*label.*empty"),
        (["image,label", ",dog"], "line 2.*image.*empty"),
        (["image,label", '"a.jpg,dog'], "line 2.*CSV.*quote"),
        (["image,label", "a.jpg,dog", "b.jpg,dog"], "'dog'"),
        (["image,text", "a.jpg,<image>"], "queries, item 1.*text='<image>'"),
    ],
)
def test_bad_csv(folder, lines, message):
    with pytest.raises(ValueError, match=message):
        user_data.load(csv(folder, *lines) if lines else put(folder / "mine.csv", ""))


@pytest.mark.parametrize(
    "line, message",
    [
        ("[1]", r"mine\.jsonl, line 2.*list"),
        ("{", r"mine\.jsonl, line 2, column 2.*JSON"),
        ('{"image": "b.jpg"}', "line 2.*'text'.*image"),
        ('{"image": 3.5, "text": "a"}', r"line 2.*image.*3\.5"),
        ('{"image": "b.jpg", "captions": []}', r"line 2.*captions.*\[\]"),
        ('{"image": "b.jpg", "captions": "one"}', "line 2.*captions.*'one'"),
    ],
)
def test_bad_jsonl(folder, line, message):
    file = put(folder / "mine.jsonl", json.dumps({"image": "a.jpg", "text": "A."}) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        user_data.load(file)


def test_what_is_not_there(folder, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match=r"line 2.*z\.jpg"):
        user_data.load(csv(folder, "image,label", "z.jpg,dog"))
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv"):
        user_data.load("nothing.csv")
    with pytest.raises(ValueError, match=r"mine\.txt.*\.csv"):
        user_data.load(put(folder / "mine.txt", "image,label"))
    with pytest.raises(ValueError, match="no image"):
        user_data.load(tmp_path_factory.mktemp("empty"))
    with pytest.raises(OSError, match=r"a\.jpg.*a\.txt"):
        user_data.load(folder)


def test_support_of_another_kind(folder):
    shown = put(folder / "shown.csv", "image,text\nin/c.png,bird\n")
    with pytest.raises(ValueError, match=r"shown\.csv.*'label'.*mine\.csv"):
        user_data.load(csv(folder, "image,label", "a.jpg,dog"), support=shown)


def test_lines_with_several_images(tmp_path):
    for i in range(4):
        Image.new("RGB", (4, 4), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    lines = [{"images": [f"{i}.png", f"{(i + 1) % 4}.png"], "question": "same?", "answer": "no"} for i in range(4)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    task = user_data.load(file)
    assert task.template.pattern == "<image><image>Question:{question} Short answer:{answer}"
    assert [one.images for one in task.queries] == [
        (tmp_path / f"{i}.png", tmp_path / f"{(i + 1) % 4}.png") for i in range(4)
    ]
    prompt = Prompt.of(task, 0, (1, 2), 2)
    assert prompt.text.count("<image>") == len(prompt.images) == 6
    with pytest.raises(ValueError, match="RICES compares one"):
        Settings(tmp_path / "run", shots=(1,), modes=("rices",)).check([task])
    lines[2]["images"] = ["0.png"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(ValueError, match=r"different numbers of images: 1 .*line 3.*, 2 "):
        user_data.load(file)
    lines[2]["images"] = []
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(ValueError, match="expected a list of paths"):
        user_data.load(file)


# ---- a query's own demonstrations -----------------------------------------------------------------------------------


def episodes(folder):
    return jsonl(
        folder,
        {
            "image": "a.jpg",
            "label": "dax",
            "demonstrations": [{"image": "b.jpg", "label": "dax"}, {"image": "in/c.png", "label": "wug"}],
        },
        {
            "image": "b.jpg",
            "label": "wug",
            "demonstrations": [{"image": "in/c.png", "label": "dax"}, {"image": "a.jpg", "label": "wug"}],
        },
    )


def test_a_query_is_shown_the_first_of_its_own_demonstrations(folder):
    task = user_data.load(episodes(folder))
    assert task.labels == ("dax", "wug") and task.metric is user_data.metrics.TOP_1
    shown = {n: [[task.support[i] for i in some] for some in shots.select(task, n)] for n in (0, 1, 2)}
    assert shown[0] == [[], []]
    assert [[(one.image.name, one.answer) for one in some] for some in shown[1]] == [
        [("b.jpg", "dax")],
        [("c.png", "dax")],
    ]
    assert [[one.answer for one in some] for some in shown[2]] == [["dax", "wug"], ["dax", "wug"]]
    with pytest.raises(ValueError, match=r"query '1' has 2 demonstrations, and 3 shots"):
        shots.select(task, 3)


def test_own_demonstrations_of_free_answers(folder):
    shown = [{"image": "b.jpg", "answer": "ein Hund"}]
    task = user_data.load(jsonl(folder, {"image": "a.jpg", "answer": "eine Katze", "demonstrations": shown}))
    assert task.metric is user_data.metrics.EXACT_MATCH and task.labels is None
    (chosen,) = shots.select(task, 1)
    prompt = Prompt.of(task, 0, chosen, 1)
    assert prompt.text == "<image>Output:ein Hund<|endofchunk|><image>Output:"


@pytest.mark.parametrize(
    "demonstrations, message",
    [
        ("b.jpg", r"mine\.jsonl, line 1: demonstrations is b\.jpg; expected a list of objects"),
        ([{"image": "no.jpg", "label": "dax"}], r"line 1, demonstration 1 .*no\.jpg"),
        ([{"image": "b.jpg", "label": ""}], r"line 1, demonstration 1: label is empty"),
        ([{"image": "b.jpg", "label": "dax"}, {"image": "b.jpg", "text": "dax"}], "must be of one kind"),
        ([{"image": "../secret.jpg", "label": "dax"}], r"line 1, demonstration 1.*outside"),
        ([{"label": "dax"}], r"line 1, demonstration 1 has no column 'image'"),
    ],
)
def test_wrong_demonstrations_are_named(folder, demonstrations, message):
    picture(folder.parent / "secret.jpg")
    file = jsonl(folder, {"image": "a.jpg", "label": "wug", "demonstrations": demonstrations})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        user_data.load(file)


def test_own_demonstrations_are_of_all_lines_and_of_one_file(folder):
    with pytest.raises(ValueError, match="leave out the support set"):
        user_data.load(episodes(folder), support=put(folder / "shown.csv", "image,label\nin/c.png,dax\n"))
    shown = [{"image": "b.jpg", "label": "dax"}]
    lines = ({"image": "a.jpg", "label": "dax", "demonstrations": shown}, {"image": "b.jpg", "label": "wug"})
    with pytest.raises(ValueError, match=r"line 2 has no demonstrations, and other lines have"):
        user_data.load(jsonl(folder, *lines))


def test_answers_without_a_question(folder):
    task = user_data.load(csv(folder, "image,answer", "a.jpg,a dog", "b.jpg,a cat"))
    assert task.metric is user_data.metrics.EXACT_MATCH and task.template == templates.classification
    assert [one.references for one in task.queries] == [("a dog",), ("a cat",)]
