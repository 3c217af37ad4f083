from __future__ import annotations

import errno
import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from train_toy import toy_recipe

from hybridmap.errors import UserError
from hybridmap.train import log as module
from hybridmap.train.log import speaking
from hybridmap.train.run_dir import RunDirectory, hold


def record(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": 2.0 / step, "lr": 1e-3, "images_per_s": 123.4, "data_wait": 0.056} | more


@pytest.fixture
def run(tmp_path: Path) -> Any:
    with hold(tmp_path, toy_recipe()) as held:
        yield held


def test_a_line_of_progress_has_eta_loss_rate_images_and_data_wait(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_QUIET_S", -1.0)
    with speaking(run, toy_recipe(log_every=1)) as told:
        told.begin(0, 4)
        for step in (1, 2, 3):
            told.write(record(step))
    last = capsys.readouterr().err.splitlines()[-1]
    for part in ("step 3/4", "loss 1.", "lr 1.00e-03", "123 images/s", "data wait 5.6%", "ETA"):
        assert part in last


def test_what_is_said_goes_to_the_console_and_to_the_file(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    with speaking(run, toy_recipe(log_every=1)):
        logging.getLogger("hybridmap.data").warning("cannot read %s", "[odd] name.jpg")
        logging.getLogger("hybridmap.train").info("hello")
    assert capsys.readouterr().err.splitlines() == ["cannot read [odd] name.jpg", "hello"]
    lines = (run.path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["WARNING cannot read [odd] name.jpg", "INFO hello"]
    assert logging.getLogger("hybridmap").handlers == [], "nothing stays behind"


def test_exams_are_written_whatever_the_interval(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    with speaking(run, toy_recipe(log_every=10)) as told:
        told.begin(0, 20)
        for step in range(1, 12):
            told.write(record(step, **({"knn/top1": 41.5} if step == 7 else {})))
    assert [line["step"] for line in run.lines()] == [7, 10]
    assert "step 7: knn/top1 41.5" in capsys.readouterr().err


def test_other_processes_write_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with speaking(None, toy_recipe(tensorboard=True)) as told:
        told.begin(0, 3)
        told.write(record(1))
        logging.getLogger("hybridmap.train").warning("said by the main process")
    assert capsys.readouterr().err == ""


def test_a_log_that_cannot_be_written_is_a_sentence(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    with speaking(run, toy_recipe(log_every=1)):

        class Full:
            def write(self, text: str) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            def flush(self) -> None: ...

            def close(self) -> None: ...

        handler = next(h for h in logging.getLogger("hybridmap").handlers if isinstance(h, logging.FileHandler))
        handler.stream.close()
        monkeypatch.setattr(handler, "stream", Full())
        with pytest.raises(UserError, match=r"no space left to write .*log\.txt"):
            logging.getLogger("hybridmap.train").info("hello")


def test_a_board_that_cannot_be_written_is_a_sentence_and_no_traceback(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    def tell() -> None:
        with speaking(run, toy_recipe(tensorboard=True)) as told:
            told.begin(0, 500)
            for step in range(1, 500):
                told.write(record(step))
                shutil.rmtree(run.path / "tensorboard", ignore_errors=True)

    pytest.importorskip("tensorboard")
    before = threading.excepthook
    with pytest.raises(UserError, match=r"cannot write .*tensorboard \(its directory is gone\)"):
        tell()
    assert "Traceback" not in capsys.readouterr().err
    assert threading.excepthook is before
    assert logging.getLogger("hybridmap").handlers == []
