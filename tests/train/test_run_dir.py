from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from train_toy import ToyLearner, toy_recipe

from hybridmap.config import from_yaml, override
from hybridmap.errors import UserError
from hybridmap.train.run_dir import environment, hold


def test_a_run_directory_holds_the_whole_recipe(tmp_path: Path) -> None:
    recipe = toy_recipe(learner=ToyLearner.Config(width=12), seed=3)
    with hold(tmp_path / "new" / "run", recipe) as run:
        assert from_yaml((run.path / "recipe.yaml").read_text()) == recipe


def test_a_second_launch_in_one_directory_is_refused(tmp_path: Path) -> None:
    with (
        hold(tmp_path, toy_recipe()),
        pytest.raises(UserError, match=r"another process is training in .*; wait for it"),
        hold(tmp_path, toy_recipe(), overwrite=True),
    ):
        pass
    with hold(tmp_path, toy_recipe()):
        pass


def test_a_restarted_launch_waits_for_the_one_that_is_dying(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        dying = threading.Timer(0.3, lock.close)
        dying.start()
        with hold(tmp_path, toy_recipe(), wait_s=30):
            assert lock.closed
        dying.join()


def test_waiting_for_a_living_launch_ends(tmp_path: Path) -> None:
    with (
        hold(tmp_path, toy_recipe()),
        pytest.raises(UserError, match="another process is training"),
        hold(tmp_path, toy_recipe(), wait_s=0.2),
    ):
        pass


def test_a_file_system_without_locks_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold(tmp_path, toy_recipe()):
        pass
    assert f"the file system of {tmp_path} has no locks (No locks available)" in caplog.text


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A worker that outlives a killed run for a moment must not lock the next launch out."""
    ready, done = os.pipe(), os.pipe()
    with hold(tmp_path, toy_recipe()):
        child = os.fork()
        if child == 0:
            os.write(ready[1], b"x")
            os.read(done[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
    try:
        with (tmp_path / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.write(done[1], b"x")
        os.waitpid(child, 0)
        for end in (*ready, *done):
            os.close(end)


def test_a_different_recipe_is_refused_and_the_difference_shown(tmp_path: Path) -> None:
    with hold(tmp_path, toy_recipe()) as run:
        run.append({"step": 1, "loss": 2.0})
    changed = override(toy_recipe(seed=1), {"optim.lr": 0.5, "learner.width": 16})
    with pytest.raises(UserError, match="another recipe") as caught, hold(tmp_path, changed):
        pass
    for difference in ("seed was 0, now 1", "optim.lr was 0.01, now 0.5", "learner.width was 8, now 16", "--overwrite"):
        assert difference in str(caught.value)


def test_a_launch_that_took_no_step_gives_way_to_a_mended_recipe(tmp_path: Path) -> None:
    with hold(tmp_path, toy_recipe()) as run:
        run.checkpoints.save(0, {"a": torch.ones(2)}, {})
    with hold(tmp_path, toy_recipe(seed=1)) as run:
        assert run.checkpoints.paths() == []
        assert from_yaml((tmp_path / "recipe.yaml").read_text()).seed == 1
        run.checkpoints.save(2, {"a": torch.ones(2)}, {})
    with pytest.raises(UserError, match="seed was 1, now 2"), hold(tmp_path, toy_recipe(seed=2)):
        pass


def test_what_changes_no_result_may_change(tmp_path: Path) -> None:
    with hold(tmp_path, toy_recipe()):
        pass
    with hold(tmp_path, override(toy_recipe(), {"data.workers": 2, "train.log_every": 5, "train.keep": 7})) as run:
        assert run.checkpoints.keep == 7


def test_overwrite_deletes_what_a_run_holds_and_nothing_else(tmp_path: Path) -> None:
    with hold(tmp_path, toy_recipe()) as run:
        run.append({"step": 1, "loss": 2.0})
        run.checkpoints.save(1, {"a": torch.ones(2)}, {})
        run.write_json("results.json", {"top1": 1.0})
    (tmp_path / "notes.txt").write_text("mine")
    with hold(tmp_path, toy_recipe(seed=1), overwrite=True) as run:
        assert run.lines() == []
        assert run.checkpoints.paths() == []
        assert run.read_json("results.json") == {}
        assert from_yaml((tmp_path / "recipe.yaml").read_text()).seed == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_with_something_else_in_it_is_refused(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "log.txt").write_text("mine too")
    with (
        pytest.raises(UserError, match="is not empty and not the directory of a run; choose another --out"),
        hold(tmp_path, toy_recipe(), overwrite=overwrite),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "thesis.tex"]


def test_an_out_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(
            UserError, match=r"cannot write .*file/run \(a file stands where a directory is needed\); choose a directory"
        ),
        hold(tmp_path / "file" / "run", toy_recipe()),
    ):
        pass


def test_metrics_are_cut_back_and_half_lines_dropped(tmp_path: Path) -> None:
    with hold(tmp_path, toy_recipe()) as run:
        for step in range(1, 6):
            run.append({"step": step, "loss": 0.5 * step})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 6, "lo')
        run.cut_back(3)
        assert [line["step"] for line in run.lines()] == [1, 2, 3]
        run.append({"step": 4, "loss": float("nan")})
        text = (tmp_path / "metrics.jsonl").read_text()
        assert json.loads(text.splitlines()[-1]) == {"step": 4, "loss": None}


def test_leftovers_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    with hold(tmp_path, toy_recipe()) as run:
        run.checkpoints.save(1, {"a": torch.ones(2)}, {})
    left = (
        ".metrics.jsonl.71.tmp",
        "checkpoints/.step-00000002.safetensors.71.tmp",
        "checkpoints/.tmpAbC12x",
        "pictures/.masks.png.71.tmp",
    )
    for name in left:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    with hold(tmp_path, toy_recipe()):
        pass
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        ".lock", "checkpoints/step-00000001.safetensors", "recipe.yaml",
    ]  # fmt: skip


def test_skipped_images_are_remembered_over_launches(tmp_path: Path) -> None:
    with hold(tmp_path, toy_recipe()) as run:
        run.note_skipped({})
        assert not (tmp_path / "skipped.json").exists()
        run.note_skipped({"a.jpg": "truncated"})
        run.note_skipped({"b.jpg": "empty"})
        assert run.read_json("skipped.json") == {"a.jpg": "truncated", "b.jpg": "empty"}


def test_the_environment_names_versions_and_device() -> None:
    facts = environment(torch.device("cpu"), 1)
    assert facts["versions"]["torch"] == torch.__version__.partition("+")[0] or facts["versions"]["torch"] == torch.__version__
    assert (facts["device"], facts["processes"]) == ("cpu", 1)
    json.dumps(facts)
