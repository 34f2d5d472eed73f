"""What is odd about captions is counted, and every caption is drawn."""

from collections.abc import Callable
from pathlib import Path

import torch

from clipreid.backbones import load_backbone
from clipreid.training.captions import NONE, draw_captions, each_once, odd_captions, said_of, tokenised


def test_what_says_nothing_is_no_caption_in_any_script() -> None:
    assert said_of([["a hat", "...", "—"], ["红色的包"], ["42"], []]) == [["a hat"], ["红色的包"], ["42"], []]


def test_odd_captions_are_counted(tiny_folder: Callable[[str], Path]) -> None:
    tokenizer = load_backbone(f"hf:{tiny_folder('clip')}").tokenizer
    assert odd_captions([["a red hat"], ["a café, naïve"]], tokenizer) == []
    captions = [["a red hat", "a red hat " * 40], ["!!"], [], ["красная сумка", "红色的包"]]
    silent, blank, other, cut = odd_captions(captions, tokenizer)
    assert silent == "2 of 4 images have none, and take part in the losses of images only"
    assert blank == "1 without a letter or digit count as none"
    assert other.startswith("2 of 4 texts have letters of other scripts than Latin: they are read as the tokenizer")
    assert cut.startswith("1 of 4 texts are longer than the")


def test_other_scripts_become_tokens_and_too_long_ones_keep_their_end(tiny_folder: Callable[[str], Path]) -> None:
    backbone = load_backbone(f"hf:{tiny_folder('clip')}")
    captions = [["红色的包 é"], ["a red hat " * 40], []]
    rows, which = torch.arange(3), torch.tensor([0, 0, NONE])
    batch = tokenised(captions, backbone.tokenizer, rows, which, torch.zeros(3, dtype=torch.bool))
    assert batch["captioned"].tolist() == [True, True, False]
    ids, ends = batch["captions"], backbone.text.pool_index(batch["captions"])
    assert ends[0] > 1
    assert ends.tolist()[1:] == [ids.shape[1] - 1, 1]
    assert torch.isfinite(backbone.text.encode(ids)).all()


def test_draws_depend_on_seed_epoch_step_and_image_alone() -> None:
    captions = [["a"] * 5, [], ["b"] * 3]
    rows = torch.tensor([2, 0, 1])
    found = [draw_captions(captions, rows, 0, 1, step) for step in range(200)]
    assert {int(each[2]) for each in found} == {NONE}
    assert {int(each[1]) for each in found} == set(range(5))
    assert {int(each[0]) for each in found} == set(range(3))
    alone = draw_captions(captions, rows[:1], 0, 1, 7)
    assert torch.equal(alone, found[7][:1])


def test_each_once_pairs_images_with_their_sentences() -> None:
    captions = [["a", "b"], [], ["c"]]
    rows, which = each_once(captions, 2, seed=0, epoch=0)
    assert rows.shape == which.shape == (2, 2)
    assert sorted(zip(rows.flatten().tolist(), which.flatten().tolist(), strict=True)) == [
        (0, 0), (0, 1), (1, NONE), (2, 0)]  # fmt: skip
    assert len(each_once(captions, 3, 0, 0)[0]) == 1  # one is left over
