"""The stream of batches: the same samples however the work is split, and from wherever it is continued."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hybridmap.data import loader
from hybridmap.data.base import Dataset, Samples
from hybridmap.data.folder import ImageFolder
from hybridmap.data.image_transforms import CentreCrop
from hybridmap.data.loader import MIXED, Loader, each, permutation
from hybridmap.data.synthetic import Synthetic
from hybridmap.errors import UserError
from hybridmap.types import Batch

SYNTHETIC = Synthetic.Config(size=8, length=10)


def steps(config: Dataset.Config, **arguments) -> list[list[Batch]]:
    return [list(micro_batches) for micro_batches in Loader(config, **arguments)]


def joined(run: list[list[Batch]]) -> tuple[torch.Tensor, torch.Tensor]:
    """All inputs and keys of a run in order."""
    return torch.cat([b.inputs for s in run for b in s]), torch.cat([b.key for s in run for b in s])


def same(a: list[list[Batch]], b: list[list[Batch]]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(joined(a), joined(b), strict=True))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve noisy pictures in two classes."""
    torch.manual_seed(0)
    for i in range(12):
        target = tmp_path / ("even" if i % 2 == 0 else "odd")
        target.mkdir(exist_ok=True)
        Image.fromarray(torch.randint(0, 255, (24, 32, 3), dtype=torch.uint8).numpy()).save(target / f"{i:02}.png")
    return tmp_path


def folder(root: Path, **fields) -> ImageFolder.Config:
    return ImageFolder.Config(**({"root": str(root), "size": 16, "workers": 0} | fields))


@pytest.mark.parametrize("epoch", [0, 1])
def test_blocks_are_read_a_few_at_a_time_and_every_image_once(epoch: int) -> None:
    blocks = tuple(3 + k % 4 for k in range(3 * MIXED + 5))
    order = permutation(7, epoch, sum(blocks), blocks)
    assert sorted(order.tolist()) == list(range(sum(blocks)))
    assert order.tolist() != permutation(7, 1 - epoch, sum(blocks), blocks).tolist()
    of_block = np.repeat(np.arange(len(blocks)), blocks)[order]
    last = {block: place for place, block in enumerate(of_block.tolist())}
    first = {block: place for place, block in reversed(list(enumerate(of_block.tolist())))}
    at_once = [sum(first[b] <= place <= last[b] for b in first) for place in range(len(order))]
    assert max(at_once) <= MIXED
    assert len(set(of_block[:MIXED].tolist())) > 2, "they are mixed"


def test_repeats_come_in_a_row_under_other_keys_and_any_split_sees_the_same() -> None:
    config = Synthetic.Config(size=8, length=12, num_classes=12, repeats=3)
    run = steps(config, batch_size=4, steps=6, seed=3)
    labels = torch.cat([b.labels for s in run for b in s]).view(-1, 3)
    assert (labels == labels[:, :1]).all()
    assert labels[:4, 0].unique().numel() == labels[4:, 0].unique().numel() == 4, "an epoch has a third of the images"
    assert joined(run)[1].unique().numel() == 24
    later = steps(config, batch_size=4, steps=6, seed=3, start_step=2)
    assert same(later, run[2:])
    ranks = [steps(config, batch_size=4, steps=6, seed=3, rank=rank, world=2) for rank in range(2)]
    assert torch.equal(torch.cat([ranks[0][1][0].inputs, ranks[1][1][0].inputs]), run[1][0].inputs)
    with pytest.raises(UserError, match=r"data\.repeats must be at least 1, got 0"):
        Synthetic.Config(repeats=0)


def test_training_images_are_erased_and_those_of_an_evaluation_are_not(photos: Path) -> None:
    plain, erased = folder(photos), folder(photos, erasing=1.0)
    runs = [torch.cat([b.inputs for s in steps(config, batch_size=4, steps=3) for b in s]) for config in (plain, erased)]
    changed = (runs[0] != runs[1]).any(1).flatten(1).float().mean(1)
    assert (changed > 0).all()
    assert (changed < 0.5).all()
    assert torch.equal(*(torch.cat([images for images, _, _ in each(config.build(), 4)]) for config in (plain, erased)))


def test_every_epoch_visits_each_image_once_in_another_order() -> None:
    run = steps(SYNTHETIC, batch_size=4, steps=5, seed=3)
    keys = joined(run)[1].tolist()
    labels = torch.cat([b.labels for s in run for b in s]).tolist()
    assert sorted(labels[:10]) == sorted(labels[10:]) == list(range(10))
    assert labels[:10] != labels[10:]
    assert len(set(keys)) == 20


def test_a_batch_larger_than_the_data_set_repeats_images_under_new_keys() -> None:
    (batch,) = steps(SYNTHETIC, batch_size=25, steps=1)[0]
    assert len(set(batch.key.tolist())) == 25


def test_permutation_is_a_function_of_seed_and_epoch() -> None:
    assert sorted(permutation(0, 0, 50)) == list(range(50))
    assert list(permutation(0, 0, 50)) == list(permutation(0, 0, 50))
    assert list(permutation(0, 0, 50)) != list(permutation(1, 0, 50))
    assert list(permutation(0, 0, 50)) != list(permutation(0, 1, 50))


def test_continuing_at_a_step_gives_the_rest_of_the_run() -> None:
    whole = steps(SYNTHETIC, batch_size=6, steps=5, seed=1)
    assert same(whole[3:], steps(SYNTHETIC, batch_size=6, steps=5, seed=1, start_step=3))


def test_step_keys_name_the_step_and_are_equal_in_all_micro_steps_and_processes() -> None:
    a = steps(SYNTHETIC, batch_size=4, steps=3, accumulate=2)
    b = steps(SYNTHETIC, batch_size=4, steps=3, world=2, rank=1)
    assert [[batch.step_key for batch in s] for s in a] == [[s[0].step_key] * 2 for s in b]
    assert len({s[0].step_key for s in b}) == 3


def test_micro_steps_and_processes_divide_the_same_batch() -> None:
    whole = joined(steps(SYNTHETIC, batch_size=8, steps=2, seed=5))[1].view(2, 8)
    parts = [steps(SYNTHETIC, batch_size=8, steps=2, seed=5, accumulate=2, world=2, rank=rank) for rank in (0, 1)]
    for step in range(2):
        divided = [parts[rank][step][micro].key for micro in range(2) for rank in range(2)]
        assert torch.equal(torch.cat(divided), whole[step])


def test_a_step_left_early_does_not_shift_the_next() -> None:
    whole = steps(SYNTHETIC, batch_size=4, steps=3, accumulate=2)
    firsts = [next(micro_batches) for micro_batches in Loader(SYNTHETIC, batch_size=4, steps=3, accumulate=2)]
    assert all(torch.equal(a.key, s[0].key) for a, s in zip(firsts, whole, strict=True))


def test_any_number_of_workers_gives_the_same_samples(photos: Path) -> None:
    (photos / "odd" / "05.png").write_bytes(b"")
    alone = steps(folder(photos), batch_size=6, steps=4, accumulate=2)
    for workers in (1, 3):
        loader = Loader(folder(photos), batch_size=6, steps=4, accumulate=2, workers=workers)
        assert same(alone, [list(s) for s in loader])
        assert [Path(path).name for path in loader.skipped] == ["05.png"]
    assert not multiprocessing.active_children()


def test_views_are_independent_crops_that_follow_from_the_key(photos: Path) -> None:
    (photos / "odd" / "05.png").write_bytes(b"")
    single = steps(folder(photos), batch_size=6, steps=4, accumulate=2)
    assert all(batch.views is None for step in single for batch in step)
    run = steps(folder(photos, views=2), batch_size=6, steps=4, accumulate=2)
    for alone, several in zip(single, run, strict=True):
        for before, batch in zip(alone, several, strict=True):
            assert batch.views is not None
            first, second = batch.views
            assert first is batch.inputs
            assert torch.equal(batch.key, before.key)
            assert torch.equal(batch.labels, before.labels)
            assert (first != second).flatten(1).any(1).all(), "no two crops of an image are the same"
            assert (first != before.inputs).flatten(1).any(1).all()
    views = [torch.cat([b.views[v] for s in run for b in s]) for v in (0, 1)]
    loader = Loader(folder(photos, views=2), batch_size=6, steps=4, accumulate=2, workers=2)
    again = [list(s) for s in loader]
    assert all(torch.equal(view, torch.cat([b.views[v] for s in again for b in s])) for v, view in enumerate(views))
    assert [Path(path).name for path in loader.skipped] == ["05.png"]
    later = steps(folder(photos, views=2), batch_size=6, steps=4, accumulate=2, start_step=2)
    assert torch.equal(torch.cat([b.views[1] for s in later for b in s]), views[1][12:])
    parts = [steps(folder(photos, views=2), batch_size=6, steps=4, accumulate=1, world=2, rank=rank) for rank in (0, 1)]
    divided = torch.cat([parts[rank][step][0].views[1] for step in range(4) for rank in (0, 1)])
    assert torch.equal(divided, views[1])


def test_without_random_crops_all_views_are_the_same_image(photos: Path) -> None:
    (batch,) = steps(folder(photos, views=3, crop=CentreCrop.Config()), batch_size=12, steps=1)[0]
    assert batch.views is not None
    assert len(batch.views) == 3
    assert all(torch.equal(view, batch.inputs) for view in batch.views)


def test_evaluation_sees_each_image_once_whatever_the_views(photos: Path) -> None:
    for views in (1, 2):
        images = torch.cat([images for images, _, _ in each(folder(photos, views=views).build(), 5)])
        assert len(images) == 12
        whole = images if views == 1 else whole
    assert torch.equal(images, whole)


def test_no_view_at_all_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.views must be at least 1, got 0"):
        Synthetic.Config(views=0)


def test_the_global_generators_are_left_alone(photos: Path) -> None:
    before = torch.get_rng_state()
    steps(folder(photos), batch_size=4, steps=2, workers=1)
    list(each(folder(photos).build(), 5))
    assert torch.equal(before, torch.get_rng_state())


def test_inputs_are_normalised_floats_with_labels(photos: Path) -> None:
    (batch,) = steps(folder(photos), batch_size=12, steps=1)[0]
    assert batch.inputs.dtype == torch.float32
    assert batch.inputs.shape == (12, 3, 16, 16)
    assert batch.inputs.mean().abs() < 1
    assert sorted(batch.labels.tolist()) == [0] * 6 + [1] * 6


def test_unlabelled_images_have_no_labels(photos: Path) -> None:
    (photos / "odd" / "01.png").rename(photos / "loose.png")
    (batch,) = steps(folder(photos), batch_size=4, steps=1)[0]
    assert batch.labels is None


def test_more_than_one_per_cent_unreadable_is_a_warning(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photos / "odd" / "05.png").write_text("text")
    loader = Loader(folder(photos), batch_size=6, steps=4)
    with caplog.at_level(logging.WARNING, logger="hybridmap"):
        for micro_batches in loader:
            list(micro_batches)
    assert loader.too_many_skipped
    lines = [record.getMessage() for record in caplog.records]
    assert sum("05.png (it is not an image of a known format)" in line for line in lines) == 1
    assert sum("1 of about 12 images could not be read, more than 1 %" in line for line in lines) == 1


def test_a_sound_folder_is_no_warning(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    loader = Loader(folder(photos), batch_size=6, steps=2)
    for micro_batches in loader:
        list(micro_batches)
    assert not loader.skipped
    assert not loader.too_many_skipped
    assert not caplog.records


def test_on_error_fail_is_one_sentence_through_workers_too(photos: Path) -> None:
    (photos / "odd" / "05.png").write_text("text")
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^\S*05\.png cannot be read \(it is not an image of a known format\)"):
            steps(folder(photos, on_error="fail"), batch_size=12, steps=1, workers=workers)


def test_an_indivisible_batch_is_told() -> None:
    with pytest.raises(UserError, match="must be a multiple of processes x accumulate = 2 x 2, got 6"):
        Loader(SYNTHETIC, batch_size=6, accumulate=2, world=2, steps=1)


def test_waiting_is_measured_per_step() -> None:
    loader = Loader(SYNTHETIC, batch_size=4, steps=2)
    waits = []
    for micro_batches in loader:
        list(micro_batches)
        waits.append(loader.wait_s)
    assert len(loader) == 2
    assert all(0 < wait < 5 for wait in waits)


def test_leaving_the_loop_early_ends_the_workers(photos: Path) -> None:
    run = iter(Loader(folder(photos), batch_size=2, steps=1000, workers=2))
    list(next(run))
    assert len(multiprocessing.active_children()) == 2
    run.close()
    assert not multiprocessing.active_children()


def test_workers_outlive_signals_that_the_training_process_answers(photos: Path) -> None:
    run = iter(Loader(folder(photos), batch_size=2, steps=50, workers=2))
    for _ in range(2):  # one answer of each worker: both have started, hence know what to do with a signal
        list(next(run))
    for child in multiprocessing.active_children():
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGTERM):
            os.kill(child.pid, number)
    time.sleep(0.2)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGTERM)  # the same one again, passed on by the launcher
    time.sleep(0.2)
    assert sum(len(list(micro_batches)) for micro_batches in run) == 48


def test_each_gives_every_image_once_in_order(photos: Path) -> None:
    data = folder(photos, crop=CentreCrop.Config()).build()
    batches = list(each(data, 5))
    assert [len(paths) for _, _, paths in batches] == [5, 5, 2]
    assert [path for _, _, paths in batches for path in paths] == [data.source.name(i) for i in range(12)]
    assert torch.cat([labels for _, labels, _ in batches]).tolist() == [data.source.label(i) for i in range(12)]
    again = list(each(data, 12, workers=1))
    assert torch.equal(torch.cat([b[0] for b in batches]), again[0][0])


def test_random_crops_are_the_same_in_every_pass_of_each(photos: Path) -> None:
    data = folder(photos).build()
    assert torch.equal(next(each(data, 12))[0], next(each(data, 12))[0])


def test_each_leaves_out_and_names_what_cannot_be_read(photos: Path) -> None:
    (photos / "even" / "00.png").write_bytes(b"")
    skipped: dict[str, str] = {}
    batches = list(each(folder(photos).build(), 1, skipped=skipped))
    assert len(batches) == 11
    assert list(skipped.values()) == ["the file is empty"]


def test_each_over_nothing_readable_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("text")
    with pytest.raises(UserError, match="none of the 1 images can be read"):
        list(each(folder(tmp_path).build(), 4))


class Deadly(Synthetic):
    """Kills the process that prepares the images with these numbers: once each, or ``always``."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Synthetic.Config):
        memory: str = ""
        """A directory that remembers who died."""
        victims: tuple[int, ...] = ()
        always: bool = False

    config: Deadly.Config

    def samples(self, indices: Sequence[int], keys: Sequence[int], **how: Any) -> Samples:
        for index in set(indices) & set(self.config.victims):
            note = Path(self.config.memory) / str(index)
            if self.config.always or not note.exists():
                note.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().samples(indices, keys, **how)


@pytest.mark.slow  # torch looks for the dead every five seconds
def test_a_worker_that_is_killed_is_replaced_and_no_sample_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = steps(SYNTHETIC, batch_size=4, steps=6, accumulate=2, seed=3)
    handler = signal.getsignal(signal.SIGCHLD)
    stream = Loader(
        Deadly.Config(size=8, length=10, memory=str(tmp_path), victims=(4,)),
        batch_size=4,
        steps=6,
        accumulate=2,
        seed=3,
        start_step=1,
        workers=2,
    )
    assert same([list(micro_batches) for micro_batches in stream], whole[1:])
    assert [record.getMessage() for record in caplog.records if "new ones take its place" in record.getMessage()]
    assert signal.getsignal(signal.SIGCHLD) == handler, "an error may come at any place of the training process"


@pytest.mark.slow
def test_workers_that_always_die_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_DEATHS", 2)
    deadly = Deadly.Config(size=8, length=10, memory=str(tmp_path), victims=(0,), always=True)
    with pytest.raises(UserError, match=r"died 2 times in a row .*; often the memory .* try a smaller --data\.workers, or 0"):
        list(each(deadly.build(), 5, workers=1))


class Confined(Synthetic):
    """Its workers may not write files of more than 100 bytes; shared memory is one."""

    def samples(self, indices: Sequence[int], keys: Sequence[int], **how: Any) -> Samples:
        resource = pytest.importorskip("resource")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return super().samples(indices, keys, **how)


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory is a file there")
def test_a_batch_that_finds_no_room_in_shared_memory_is_one_sentence() -> None:
    """Torch alone would wait for ever."""
    with pytest.raises(UserError, match=r"cannot write a batch of 0\.0 MB to shared memory .*--shm-size.*--data\.workers 0"):
        list(each(Confined(Synthetic.Config(size=8, length=10)), 5, workers=1))
