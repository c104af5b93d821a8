"""The tool that runs Meta's code beside samforge: all but Meta's code itself."""

from __future__ import annotations

import dataclasses
import gzip
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samforge.core.errors import CheckpointError, PromptError, SettingError
from samforge.models.sam3.loading import checkpoint_from_name
from samforge.runtime import PhraseTokenizer

ROOT = Path(__file__).resolve().parents[2]
TOOLS = str(ROOT / "tools")


@pytest.fixture(scope="module")
def tool(one_thread: None) -> Iterator[Any]:
    """``tools/compare_with_meta.py`` as a module; its folder is importable meanwhile only."""
    sys.path.insert(0, TOOLS)
    try:
        yield importlib.import_module("compare_with_meta")
    finally:
        sys.path.remove(TOOLS)


@pytest.fixture(scope="module")
def part(tool: Any) -> Any:
    """A module of the package by its name."""
    return lambda name: importlib.import_module(f"meta_comparison.{name}")


@pytest.fixture
def checkout(part: Any, tmp_path: Path) -> Path:
    """A folder that looks like a checkout of Meta's repository, with nothing of it inside."""
    path = tmp_path / "sam3-checkout"
    for name in (*part("checkout").NEEDED, "sam3/assets/bpe_simple_vocab_16e6.txt.gz"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("")
    return path


# --- the checkout ---------------------------------------------------------------------------------


def test_a_folder_that_is_not_there(part: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"does not exist.*wants the folder.*git clone https"):
        part("checkout").checkout_from_folder(tmp_path / "missing")


def test_a_file_is_no_checkout(part: Any, tmp_path: Path) -> None:
    (tmp_path / "sam3.pt").write_bytes(b"")
    with pytest.raises(SettingError, match=r"sam3\.pt is a file.*git clone"):
        part("checkout").checkout_from_folder(tmp_path / "sam3.pt")


@pytest.mark.parametrize("inside", [(), ("README.md", "src")])
def test_a_folder_that_is_no_checkout(part: Any, tmp_path: Path, inside: tuple[str, ...]) -> None:
    for name in inside:
        (tmp_path / name).mkdir()
    with pytest.raises(
        SettingError, match=r"is no checkout.*has no sam3/model_builder\.py"
    ) as told:
        part("checkout").checkout_from_folder(tmp_path)
    assert f"it holds {', '.join(inside) or 'nothing'}" in str(told.value)


@pytest.mark.parametrize(
    "missing", ["sam3/model/sam3_image_processor.py", "sam3/assets/bpe_simple_vocab_16e6.txt.gz"]
)
def test_a_checkout_that_is_not_whole(part: Any, checkout: Path, missing: str) -> None:
    (checkout / missing).unlink()
    with pytest.raises(SettingError, match=rf"not whole.*{missing} is missing.*99d02f28c8d3"):
        part("checkout").checkout_from_folder(checkout)


def test_the_first_commits_have_the_vocabulary_at_the_top(part: Any, checkout: Path) -> None:
    (checkout / "sam3/assets").rename(checkout / "assets")
    found = part("checkout").checkout_from_folder(checkout)
    assert found.vocabulary == checkout / "assets/bpe_simple_vocab_16e6.txt.gz"


def test_a_damaged_vocabulary_stops_before_anything_starts(
    tool: Any, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["--checkout", str(checkout)]) == SettingError.exit_code
    assert re.search(r"bpe_simple_vocab_16e6\.txt\.gz .*again", capsys.readouterr().err)


def test_another_commit_is_told(part: Any, checkout: Path) -> None:
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "another"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    found = part("checkout").checkout_from_folder(checkout)
    assert found.commit == head.stdout.strip()
    assert not found.as_tried
    assert found.describe() == (
        f"commit {found.commit}. This was tried with commit {part('checkout').TRIED}: what differs "
        "may be Meta's change."
    )


def test_a_copy_without_git_inside_another_repository(part: Any, checkout: Path) -> None:
    subprocess.run(["git", "-C", str(checkout.parent), "init", "-q"], check=True)
    found = part("checkout").checkout_from_folder(checkout)
    assert found.commit is None
    assert found.describe().startswith("a commit unknown to git. This was tried with")


def test_sources_tell_the_commit_and_local_changes(part: Any, checkout: Path) -> None:
    module = part("checkout")
    before = module.sources_of(checkout)
    (checkout / "sam3/notes.txt").write_text("no source")
    assert module.sources_of(checkout) == before
    (checkout / "sam3/model_builder.py").write_text("changed = True\n")
    assert module.sources_of(checkout) != before
    found = dataclasses.replace(
        module.checkout_from_folder(checkout), sources=module.TRIED_SOURCES, commit=None
    )
    assert found.describe() == f"commit {module.TRIED}, the one this was tried with"
    changed = dataclasses.replace(found, sources=before, commit=module.TRIED)
    assert "with local changes" in changed.describe()


# --- options --------------------------------------------------------------------------------------


def test_the_command_names_what_came_and_gives_a_status(
    tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["--checkout", str(tmp_path)]) == SettingError.exit_code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"SettingError: --checkout {tmp_path} is no checkout")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--phrases-file", "missing.txt"], r"--phrases-file missing\.txt cannot be read"),
        (["--checkpoint", "missing.pt"], r"--checkpoint missing\.pt is no file.*sam3\.pt"),
        (["--bundle", "there"], r"--bundle came without --checkpoint.*--keep-weights"),
        (["--threshold", "1.5"], r"--threshold is 1\.5\. Give a number from 0 to 1"),
        (["--threshold", "nan"], r"--threshold is nan"),
        (["--scenes", "0"], r"--scenes is 0\. Give at least 1"),
        (["--seed", "-1"], r"--seed is -1\. Give 0 or more"),
        (["--phrases", "cat", " "], r"A phrase is text such as 'red circle', got ' '"),
        (["--box", "0.5", "0", "0.4", "1"], r"box \(0\.5, 0\.0, 0\.4, 1\.0\) is not inside"),
        (["--negative-box", "0", "0", "1", "2"], r"is not inside the picture"),
        (["--json", "missing/table.json"], r"--json missing/table\.json: the folder is not there"),
    ],
)
def test_options_that_cannot_be(
    tool: Any, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["--checkout", "sam3", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"small": True}, r"--small belongs to drawn weights"),
        ({"weights": Path("kept.pt"), "seed": 3}, r"--keep-weights, --seed belongs to drawn"),
        ({"bundle": Path("b"), "reference": "transformers"}, r"a bundle's manifest says what it"),
        ({"device": "tpu"}, r"--device is cpu or cuda, got 'tpu'"),
        ({"precision": "fp16"}, r"--precision is fp32 or bf16, got 'fp16'"),
    ],
)
def test_settings_that_contradict(
    part: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    checkpoint = tmp_path / "sam3.pt"
    checkpoint.write_bytes(b"")
    with pytest.raises(SettingError, match=message):
        part("settings").Settings(checkout=tmp_path, checkpoint=checkpoint, **options)


def test_nothing_to_ask(part: Any, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="There is nothing to ask"):
        part("settings").Settings(checkout=tmp_path, phrases=())


def test_phrases_come_from_a_file(part: Any, tool: Any, tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    file.write_text("man’s hat\n\n  red circle  \n", encoding="utf-8")
    options = tool.parser().parse_args(
        [
            *("--checkout", "x", "--phrases-file", str(file), "--phrases", "cat"),
            *("--negative-box", "0", "0", "1", "1"),
        ]
    )
    settings = tool.settings_from_options(options)
    assert settings.phrases == ("cat", "man’s hat", "red circle")
    assert settings.boxes == ((0.0, 0.0, 1.0, 1.0, 0),)
    assert settings.threshold is None
    file.write_bytes(b"\n \n")
    with pytest.raises(SettingError, match="holds no phrase"):
        part("settings").phrases_from_file(file)
    file.write_bytes(b"caf\xe9")
    with pytest.raises(SettingError, match="cannot be read as UTF-8"):
        part("settings").phrases_from_file(file)


def test_questions_are_every_phrase_once_and_the_boxes(part: Any, tmp_path: Path) -> None:
    settings = part("settings").Settings(
        checkout=tmp_path,
        phrases=("cat", "dog", "cat"),
        boxes=((0.25, 0.0, 0.75, 0.5, 1), (0.0, 0.0, 1.0, 1.0, 0)),
    )
    *phrases, boxes = part("questions").prompts_from_settings(settings)
    assert [prompt.for_meta() for prompt in phrases] == [
        {"text": "cat", "boxes": []},
        {"text": "dog", "boxes": []},
    ]
    assert boxes.name == "2 boxes"
    assert boxes.for_meta() == {
        "text": None,
        "boxes": [(0.5, 0.25, 0.5, 0.5, 1), (0.5, 0.5, 1.0, 1.0, 0)],
    }


def test_pictures_are_written_as_both_sides_read_them(part: Any, tmp_path: Path) -> None:
    module = part("questions")
    drawn = module.pictures_from_settings(
        part("settings").Settings(checkout=tmp_path, scenes=2), tmp_path / "drawn"
    )
    assert [picture.size_hw for picture in drawn] == [(1008, 1008), (800, 1280)]
    assert all(Path(picture.file).read_bytes()[1:4] == b"PNG" for picture in drawn)
    own = part("settings").Settings(checkout=tmp_path, images=Path(drawn[1].file))
    (again,) = module.pictures_from_settings(own, tmp_path / "own")
    assert (again.name, again.size_hw) == ("0001.png", (800, 1280))


# --- Meta's side, up to Meta's code ---------------------------------------------------------------


@pytest.fixture
def job(checkout: Path, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A job on the made-up checkout; what is imported from it is forgotten."""
    (tmp_path / "work").mkdir()
    yield {
        "folder": str(tmp_path / "work"),
        "checkout": str(checkout),
        "commit": "abc",
        "tried": "99d02f2",
        "vocabulary": "",
        "checkpoint": None,
        "small": None,
        "seed": 0,
        "weights": str(tmp_path / "sam3.pt"),
        "device": "cpu",
    }
    sys.path[:] = [entry for entry in sys.path if entry != str(checkout)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "sam3"]:
        del sys.modules[name]


def test_a_missing_package_is_named(part: Any, checkout: Path, job: dict[str, Any]) -> None:
    (checkout / "sam3/model_builder.py").write_text("import not_installed_here\n")
    with pytest.raises(part("meta_side").Refusal) as told:
        part("meta_side").built(job)
    assert "Meta's code needs the package 'not_installed_here', which" in str(told.value)
    assert "--meta-python" in str(told.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", r"does not fit: .*build_sam3_image_model.*git checkout 99d02f2"),
        ("import sam3.model.later\n", r"\(abc\) does not fit: it has no sam3\.model\.later"),
        (
            "def build_sam3_image_model(size):\n    return size\n",
            r"does not fit: its builder takes other arguments",
        ),
    ],
)
def test_another_commit_that_does_not_fit(
    part: Any, checkout: Path, job: dict[str, Any], source: str, message: str
) -> None:
    (checkout / "sam3/model_builder.py").write_text(source)
    with pytest.raises(part("meta_side").Refusal, match=message):
        part("meta_side").built(job)


NETWORK = """
import torch

def build_sam3_image_model(bpe_path, device, checkpoint_path, load_from_HF):
    model = torch.nn.Linear(3, 2)
    model.register_buffer("positions", torch.zeros(2, device="cuda"))
    return model
"""


def test_weights_are_drawn_and_kept_in_the_layout_of_the_real_file(
    part: Any, checkout: Path, job: dict[str, Any]
) -> None:
    (checkout / "sam3/model_builder.py").write_text(NETWORK)
    with part("on_processor").fitting("cpu"):
        model = part("meta_side").built(job)
    kept = torch.load(job["weights"], weights_only=True)
    assert sorted(kept) == ["detector.bias", "detector.positions", "detector.weight"]
    weights = importlib.import_module("meta_weights")
    assert np.array_equal(model.weight.detach(), weights.tensor("detector.weight", (2, 3)))
    # The real loader prints what a file lacks and goes on; this one refuses.
    del kept["detector.bias"]
    torch.save({"model": kept}, job["weights"])
    with pytest.raises(part("meta_side").Refusal, match=r"lacks 1 tensors.*detector\.bias"):
        part("meta_side").check_loaded(model, job["weights"])


def test_the_other_process_tells_why_it_refuses(
    part: Any, checkout: Path, job: dict[str, Any]
) -> None:
    (checkout / "sam3/model_builder.py").write_text("import not_installed_here\n")
    with pytest.raises(CheckpointError, match="needs the package 'not_installed_here'"):
        part("running").run_meta_side(job, sys.executable)


def test_an_interpreter_that_is_none(part: Any, job: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"--meta-python /no/python cannot be started"):
        part("running").run_meta_side(job, "/no/python")


def test_the_other_process_stops_otherwise(part: Any, job: dict[str, Any]) -> None:
    false = shutil.which("false")
    assert false is not None
    with pytest.raises(part("running").MetaSideFailed, match=r"status 1: its own words.*99d02f28"):
        part("running").run_meta_side(job, false)


def test_on_a_processor_cuda_means_the_processor(part: Any) -> None:
    with part("on_processor").fitting("cpu"):
        made = torch.zeros(2, device="cuda") + torch.arange(2, device=torch.device("cuda"))
        assert made.device.type == "cpu"
        assert made.pin_memory() is made
        assert torch.ones(1, device="meta").device.type == "meta"
    assert part("on_processor").fitting("cuda").__enter__() is None


def test_stand_ins_can_be_imported_and_not_called(part: Any) -> None:
    provided = part("stand_ins").StandIns()
    sys.meta_path.append(provided)
    try:
        reader = importlib.import_module("decord").VideoReader
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("some_other_package")
    finally:
        sys.meta_path.remove(provided)
        sys.modules.pop("decord", None)
    assert provided.used == {"decord"}
    with pytest.raises(ImportError, match=r"This checkout calls decord\.VideoReader.*pip install"):
        reader("film.mp4")


def test_the_threshold_of_drawn_weights_lies_in_the_widest_gap(part: Any) -> None:
    scores = np.linspace(0.9, 0.1, 200)
    scores[20:] -= 0.05
    threshold = part("meta_side").widest_gap(scores.astype(np.float32))
    assert np.count_nonzero(scores > threshold) == 20
    assert threshold == np.float32(threshold)


# --- weights and tokens ---------------------------------------------------------------------------


def test_weights_follow_from_names(tool: Any) -> None:
    weights = importlib.import_module("meta_weights")
    drawn = weights.tensor("detector.dot_prod_scoring.hs_proj.bias", (3,))
    assert drawn.tolist() == pytest.approx([0.0140893, 0.06510519, -0.05869088], rel=1e-6)
    many = weights.normal("any", (1000, 600))  # longer than a piece
    assert abs(many.mean()) < 0.005
    assert abs(many.std() - 1) < 0.005
    assert not np.array_equal(many, weights.normal("any", (1000, 600), seed=1))
    gains = {
        "detector.x.weight": 1.0,
        "detector.trunk.blocks.0.attn.qkv.weight": 1.5,
        "detector.dot_prod_scoring.hs_proj.weight": 2.0,
    }
    for name, gain in gains.items():
        found = weights.tensor(name, (64, 256)).std() * 16
        assert found == pytest.approx(gain, rel=0.03), name
    assert weights.tensor("detector.norm.weight", (4096,)).mean() == pytest.approx(1, abs=0.01)
    assert weights.tensor("detector.dconv.weight", (16, 8, 2, 2)).std() == pytest.approx(
        0.25, rel=0.1
    )


@pytest.fixture(scope="module")
def vocabulary(part: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary of CLIP's size whose merges join two letters that stand for bytes."""
    letters = part("tokens")._byte_letters()
    pairs = [f"{first} {second}" for first in letters for second in letters]
    lines = ["#version: 0.2", *pairs[: part("tokens").MERGES]]
    path = tmp_path_factory.mktemp("vocabulary") / "bpe.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def test_a_tokenizer_from_the_vocabulary(part: Any, vocabulary: Path, tmp_path: Path) -> None:
    module = part("tokens")
    file = module.tokenizer_from_vocabulary(vocabulary, tmp_path / "tokenizer.json")
    tokenizer = PhraseTokenizer(file, 8, 49407)
    phrases = ["CAT", "a cat", "cat's", "cat’s", "é", " "]
    rows = module.token_rows(tokenizer, phrases, 49407)
    letter = {chr(code): code - 0x21 for code in range(0x21, 0x7F)}
    merged = 512 + letter["c"] * 256 + letter["a"]
    cat = [merged, 256 + letter["t"]]
    assert rows[0].tolist() == [49406, *cat, 49407, 0, 0, 0, 0]
    assert rows[1].tolist() == [49406, 256 + letter["a"], *cat, 49407, 0, 0, 0]
    apostrophe = [letter["'"], 256 + letter["s"]]
    assert rows[2].tolist() == [49406, *cat, *apostrophe, 49407, 0, 0]
    assert rows[3].tolist() == rows[2].tolist()
    assert rows[5].tolist() == [-1] * 8  # refused: nothing is left of it
    changed = rows.copy()
    changed[1, 2] += 1
    assert module.differing(phrases, changed, rows) == ("a cat",)


def test_a_vocabulary_that_is_none(part: Any, tmp_path: Path) -> None:
    file = tmp_path / "bpe.txt.gz"
    file.write_bytes(b"<html>")
    with pytest.raises(SettingError, match="cannot be read"):
        part("tokens").tokenizer_from_vocabulary(file, tmp_path / "tokenizer.json")
    file.write_bytes(gzip.compress(b"#version\na b\n"))
    with pytest.raises(SettingError, match="holds 2 merges, CLIP's vocabulary has 48894"):
        part("tokens").tokenizer_from_vocabulary(file, tmp_path / "tokenizer.json")


def test_probes_are_some_hundred_different_phrases(part: Any) -> None:
    phrases = part("tokens").probes()
    assert len(phrases) == len(set(phrases)) > 300
    assert "man’s hat" in phrases


# --- arithmetic -----------------------------------------------------------------------------------


def made_answer(part: Any, **changes: Any) -> Any:
    """Four queries, of which 1 and 3 are admitted, on a picture of 4 x 8 pixels."""
    masks = np.zeros((2, 4, 8), np.bool_)
    masks[0, :2], masks[1, 2:] = True, True
    named = {
        "threshold": np.float32(0.5),
        "input_ids": np.array([49406, 5, 49407, 0]),
        "text_features": np.ones((4, 2), np.float32),
        "logits": np.float32([-3, 2, -3, 1]),
        "boxes": np.full((4, 4), 0.5, np.float32),
        "presence_logit": np.float32(4.0),
        "masks": np.full((4, 2, 4), -2.0, np.float32),
        "signs": np.zeros((4, 1), np.uint8),
        "admitted": np.array([1, 3]),
        "found_scores": np.float32([0.8, 0.7]),
        "found_boxes": np.float32([[0, 0, 8, 2], [0, 2, 8, 4]]),
        "found_masks": part("answers").packed(masks),
    }
    return part("answers").Answer(**(named | changes))


def test_equal_answers_differ_by_nothing(part: Any) -> None:
    answer = made_answer(part)
    case = part("differences").compare_answers(("scene", "cat"), answer, answer)
    objects = case.objects
    assert {getattr(case, name) for name in part("differences").WORST} == {0.0}
    assert case.same_tokens
    assert objects.same
    assert (objects.both, objects.only_first, objects.only_second) == (2, 0, 0)
    assert (objects.iou_mean, objects.iou_min, objects.pixels) == (1.0, 1.0, 0)
    assert (objects.score, objects.box_px) == (0.0, 0.0)
    assert case.masks_size == 2.0


def test_each_difference_has_its_column(part: Any) -> None:
    first = made_answer(part)
    second = made_answer(
        part,
        input_ids=np.array([49406, 6, 49407, 0]),
        logits=first.logits + np.float32([0, 0.25, 0, 0]),
        boxes=first.boxes - np.float32(0.125),
        presence_logit=np.float32(4.5),
        masks=first.masks + np.float32(0.5),
        signs=np.array([[0b00000011], [0], [0], [0]], np.uint8),
        found_scores=np.float32([0.75, 0.7]),
        found_boxes=first.found_boxes + np.float32([[0, 3, 0, 0], [0, 0, 0, 0]]),
    )
    case = part("differences").compare_answers(("scene", "cat"), first, second)
    assert not case.same_tokens
    assert (case.presence, case.logits, case.boxes, case.masks) == (0.5, 0.25, 0.125, 0.5)
    assert case.signs == 2 / 32
    # sigmoid(2.25) sigmoid(4.5) - sigmoid(2) sigmoid(4)
    assert case.scores == pytest.approx(0.904651 * 0.989013 - 0.880797 * 0.982014, abs=1e-5)
    assert case.objects.score == pytest.approx(0.05)
    assert case.objects.box_px == 3.0


def test_what_is_no_number_is_infinitely_far(part: Any) -> None:
    broken = made_answer(part, logits=np.float32([np.nan, 0, 0, 0]))
    case = part("differences").compare_answers(("scene", "cat"), made_answer(part), broken)
    assert case.logits == np.inf


def test_objects_are_paired_by_query_then_by_mask(part: Any) -> None:
    first = made_answer(part)
    # Query 3 as before; a near duplicate of query 1, query 0, in its place; one that is new.
    masks = np.zeros((3, 4, 8), np.bool_)
    masks[0, :2, :6], masks[1, 3:, :2], masks[2, 2:] = True, True, True
    second = made_answer(
        part,
        admitted=np.array([0, 2, 3]),
        found_scores=np.float32([0.75, 0.6, 0.7]),
        found_boxes=np.float32([[0, 0, 6, 2], [0, 3, 2, 4], [0, 2, 8, 4]]),
        found_masks=part("answers").packed(masks),
    )
    assert part("differences").paired(first, second) == ([0, 1], [0, 2])
    objects = part("differences").compare_objects(first, second)
    assert (objects.both, objects.only_first, objects.only_second) == (2, 0, 1)
    assert (objects.iou_min, objects.iou_mean) == (0.75, 0.875)
    assert objects.pixels == 4
    assert objects.box_px == 2.0
    assert not objects.same


def test_nothing_admitted(part: Any) -> None:
    nothing = {
        "admitted": np.zeros(0, np.int64),
        "found_scores": np.zeros(0, np.float32),
        "found_boxes": np.zeros((0, 4), np.float32),
        "found_masks": part("answers").packed(np.zeros((0, 4, 8), np.bool_)),
    }
    empty = made_answer(part, **nothing)
    both = part("differences").compare_objects(empty, empty)
    assert (both.both, both.iou_mean, both.score, both.same) == (0, None, None, True)
    one = part("differences").compare_objects(empty, made_answer(part))
    assert (one.both, one.only_first, one.only_second) == (0, 0, 2)


def test_answers_pass_through_files(part: Any, tmp_path: Path) -> None:
    answers = part("answers")
    path = answers.answer_path(tmp_path / "run", 0, 3)
    answers.write(path, made_answer(part))
    read = answers.read_answer(path)
    assert dataclasses.asdict(read).keys() == dataclasses.asdict(made_answer(part)).keys()
    assert np.array_equal(read.found_masks, made_answer(part).found_masks)
    assert float(read.threshold) == 0.5


def test_what_stands_behind_the_end_of_a_phrase_does_not_count(part: Any) -> None:
    ids, features = part("answers").tokens_alone(
        np.array([49406, 7, 49407, 49407]), np.ones((4, 2)), 49407
    )
    assert ids.tolist() == [49406, 7, 49407, 0]
    assert features[:, 0].tolist() == [1, 1, 1, 0]


def test_mask_logits_are_thinned_before_the_disk_is_full(part: Any) -> None:
    running = part("running")
    assert running.mask_step(1) == running.mask_step(100) == 1
    assert running.mask_step(200) == 2
    assert running.mask_step(2000) == 4


# --- both sides, with samforge on both ------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(part: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny model's eager parts in fp32 and bf16, and a folder that stands for Meta's."""
    module = part("our_side")
    folder = tmp_path_factory.mktemp("asked")
    checkpoint = checkpoint_from_name("tiny")
    parts = module.eager_parts(checkpoint, "cpu", boxes=True)
    sides = [module.side_from_parts(parts, checkpoint, "cpu", name) for name in ("fp32", "bf16")]
    settings = part("settings").Settings(
        checkout=folder, phrases=("object", "star"), boxes=((0.1, 0.2, 0.5, 0.6, 1),)
    )
    questions = part("questions").Questions(
        pictures=part("questions").pictures_from_settings(settings, folder / "pictures"),
        prompts=part("questions").prompts_from_settings(settings),
    )
    meta = folder / "meta-fp32"
    for i, picture in enumerate(questions.pictures):
        pixels = module._squashed(sides[0], picture)
        features = np.zeros((1, 1, 1), np.float32)
        part("answers").write(
            part("answers").features_path(meta, i),
            part("answers").Features(pixels=pixels, fpn_0=features, fpn_1=features, fpn_2=features),
        )
        for j in range(len(questions.prompts)):
            path = part("answers").answer_path(meta, i, j)
            part("answers").write(path, made_answer(part))
    asking = module.Asking(questions=questions, meta=meta, mask_step=1)
    answered = module.answered(sides[0], asking, folder / "first")
    return sides, asking, answered


def test_the_same_side_twice_is_the_same(part: Any, asked: Any, tmp_path: Path) -> None:
    (side, _), asking, first = asked
    (tmp_path / "meta").mkdir()
    asking = dataclasses.replace(asking, meta=first)
    shutil.copytree(first, tmp_path / "meta-fp32")
    same, own = part("running").compare_sides([side], asking, tmp_path, meta=["fp32"])
    assert (same.first, same.second, same.pixels) == (
        "Meta fp32",
        "samforge fp32",
        "the same pixels",
    )
    assert own.pixels == "its own resize"
    for comparison in (same, own):
        told = comparison.summary()
        assert {told[name] for name in (*part("differences").WORST, "features")} == {0.0}
        assert told["cases"] == told["cases_with_the_same_objects"] == 6
        assert told["only_first"] == told["only_second"] == told["pixels"] == 0
    assert same.summary()["both"] > 5
    assert not (tmp_path / "samforge-0").exists()


def test_autocast_differs_a_little_and_gives_float32(asked: Any) -> None:
    (exact, reduced), _, _ = asked
    ids = {"input_ids": exact.tokenizer.encode(["red circle"])}
    wanted, found = (side.sessions["text"].run(ids) for side in (exact, reduced))
    assert found["text_features"].dtype == np.float32
    assert found["text_mask"].dtype == np.bool_
    assert 1e-5 < np.abs(found["text_features"] - wanted["text_features"]).max() < 0.1


def test_answers_hold_what_the_segmenter_found(part: Any, asked: Any) -> None:
    (side, _), asking, first = asked
    picture = asking.questions.pictures[1]
    found = side.segmenter.predict(picture.file, text="object")
    answer = part("answers").read_answer(part("answers").answer_path(first, 1, 0))
    assert sorted(answer.found_scores.tolist()) == sorted(found.scores.tolist())
    covered = np.bitwise_count(answer.found_masks).sum(axis=1, dtype=np.int64)
    assert sorted(covered.tolist()) == sorted(found.areas.tolist())
    assert answer.masks.shape[0] == len(answer.logits)


def test_tables_for_people_and_machines(
    part: Any, tool: Any, asked: Any, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    differences = part("differences")
    first = made_answer(part)
    others = made_answer(part, input_ids=first.input_ids + 1, logits=first.logits + 1)
    names = ("a picture with quite a long name.jpeg", "man’s hat")
    comparison = differences.Comparison(
        first="Meta fp32",
        second="samforge fp32",
        pixels="the same pixels",
        vision=(
            differences.Vision(
                picture=names[0], pixels=0.01, levels=1.0, features=1e-5, features_size=9.0
            ),
        ),
        cases=(differences.compare_answers(names, first, others),),
    )
    outcome = part("running").Outcome(
        checkout=part("checkout").checkout_from_folder(checkout),
        comparisons=(comparison,),
        phrases=("cat", "<start_of_text>"),
        other_tokens=("<start_of_text>",),
        record={"weights": {"from": "a checkpoint", "digest": "sha256:0123"}},
    )
    tool.show(outcome)
    told = capsys.readouterr().out
    assert "1: Meta fp32   2: samforge fp32, on the same pixels" in told
    assert "a picture with quite a long… " in told
    assert "man’s hat (other tokens)" in told
    assert "Phrases that tokenize differently: 1 of 2\n  '<start_of_text>'" in told
    table = part("tables").table_of(comparison).splitlines()
    assert table[2].split()[-6:] == ["0", "2", "0", "0", "1.000000", "0"]
    assert table[3].startswith("worst, or all")
    plain = json.loads(json.dumps(outcome.to_dict()))
    assert plain["tokens"] == {
        "phrases": 2,
        "phrases_that_tokenize_differently": ["<start_of_text>"],
    }
    assert plain["comparisons"][0]["summary"]["logits"] == 1.0


def test_the_page_shows_commands_that_parse(tool: Any) -> None:
    page = (ROOT / "docs/compare-with-meta.md").read_text(encoding="utf-8")
    command_line = r"^\$ python tools/compare_with_meta\.py ((?:.*\\\n)*.*)"
    shown = re.findall(command_line, page, re.MULTILINE)
    assert len(shown) >= 3
    for command in shown:
        options = tool.parser().parse_args(shlex.split(command.replace("\\\n", " ")))
        assert options.checkout == Path("../sam3")
    assert len(page.splitlines()) <= 60


def test_a_bundle_of_another_size_is_refused(part: Any, tiny_bundle: Any) -> None:
    with pytest.raises(SettingError, match=r"works at 224 pixels, Meta's code at 1008"):
        part("our_side").side_from_bundle(tiny_bundle.root, boxes=True)
    assert part("running").parent_of(tiny_bundle.root).startswith("sha256:")
