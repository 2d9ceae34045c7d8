"""A disk that is full, limited or read-only: one line that says what is free and what is needed, and nothing half done."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from engine_toy import ToyModel, loaders, recipe
from xtoolkit.engine import checkpoint, storage
from xtoolkit.engine.hooks import Checkpoint, JsonLines, Log, default_hooks
from xtoolkit.engine.optim import build_optimizer
from xtoolkit.engine.storage import StorageError, check_room, explain
from xtoolkit.engine.trainer import Trainer
from xtoolkit.hooks import Hook
from xtoolkit.recipe.folder import latest
from xtoolkit.recipe.settings import Optim, Train
from xtoolkit.registry import ConfigError

HERE = Path(__file__).resolve().parent


def test_the_size_of_a_checkpoint_is_known_before_it_is_written(tmp_path):
    trainer = Trainer(ToyModel(), recipe(tmp_path, steps=3), loaders(), hooks=[Checkpoint()])
    before = storage.checkpoint_bytes(trainer.model, trainer.optimizer)
    trainer.fit()
    written = sum(file.stat().st_size for file in latest(tmp_path).iterdir() if file.suffix == ".distcp")
    assert 0.8 * written < before < 2 * written


@pytest.mark.parametrize("steps, every, keep, done, count", [
    (100, 10, 2, 0, 3), (100, 100, 2, 0, 1), (25, 10, 5, 0, 3), (100, 10, 1, 0, 2), (100, 10, 2, 100, 0)])
def test_room_is_asked_for_what_will_lie_there_at_once(tmp_path, monkeypatch, steps, every, keep, done, count):
    train = Train(steps=steps, output=str(tmp_path / "new" / "run"), checkpoint_every=every, keep=keep)
    monkeypatch.setattr(storage, "free_bytes", lambda path: count * 1_000_000)
    check_room(train.output, 1_000_000, train, done)
    if count:
        monkeypatch.setattr(storage, "free_bytes", lambda path: count * 1_000_000 - 1)
        with pytest.raises(ConfigError, match=rf"has .* free; the run's checkpoints need .* \({count} of 1 MB\): make room"):
            check_room(train.output, 1_000_000, train, done)


def test_what_is_there_already_needs_no_room(tmp_path, monkeypatch):
    for step in (1, 2):
        folder = tmp_path / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / ".metadata").touch()
        (folder / "checkpoint.json").touch()
    monkeypatch.setattr(storage, "free_bytes", lambda path: 1_000_000)
    check_room(tmp_path, 1_000_000, Train(steps=100, output=str(tmp_path), checkpoint_every=1), done=2)


def test_no_room_is_said_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "free_bytes", lambda path: 1000)
    with pytest.raises(ConfigError, match="train.output: .* has 1 kB free; the run's checkpoints need"):
        Trainer(ToyModel(), recipe(tmp_path / "run"), loaders(), hooks=default_hooks())
    assert not (tmp_path / "run").exists()


def limited(output):
    """Saves twice, the second time where files may have 4 kB at most."""
    model = ToyModel()
    optimizer = build_optimizer(model, Optim(lr=1e-2))
    checkpoint.save(output, 1, model, optimizer, {"config": {}}, keep=2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        checkpoint.save(output, 2, model, optimizer, {"config": {}}, keep=2)
    except StorageError as error:
        print(error)
    try:
        check_room(output, 9000, Train(steps=9, output=str(output)), done=1)
    except ConfigError as error:
        print(error)


def test_a_file_size_limit_is_named_and_the_earlier_checkpoint_stays_whole(tmp_path):
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, env={
        **os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])})
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    saved, room = done.stdout.splitlines()
    assert saved.startswith(f"{tmp_path}: the checkpoint of step 2 could not be written: files of more than 4.1 kB may not be "
                            "written (ulimit -f); it needs ")
    assert "step_00000001, is whole: go on with --resume" in saved
    assert "a checkpoint is a file of 9 kB, and this process may write files of 4.1 kB at most (ulimit -f)" in room
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    checkpoint.load(latest(tmp_path), ToyModel())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"),
                                   RuntimeError("[enforce fail at inline_container.cc:783] . unexpected pos 64 vs 0\nmore")])
def test_a_full_disk_ends_a_run_with_one_line(tmp_path, monkeypatch, error):
    def fail(folder, tensors, record):
        if record["step"] < 10:
            return whole(folder, tensors, record)
        Path(folder).mkdir()
        monkeypatch.setattr(storage, "free_bytes", lambda path: 1000)
        raise error

    whole = checkpoint._write
    monkeypatch.setattr(checkpoint, "_write", fail)
    with pytest.raises(StorageError) as caught:
        Trainer(ToyModel(), recipe(tmp_path), loaders(), hooks=[JsonLines(), Log(), Checkpoint()]).fit()
    message = str(caught.value)
    assert f"{tmp_path}: the checkpoint of step 10 could not be written: the disk is full; it needs " in message
    assert "1 kB are free" in message and "step_00000005, is whole: go on with --resume" in message and "\n" not in message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000005"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_lines_that_cannot_be_written_end_a_run_with_one_line(tmp_path):
    class Full(Hook):
        def before_train(self, trainer):
            self.file = open("/dev/full", "w")

        def after_step(self, trainer):
            self.file.write("x" * 100)

        def close(self, trainer):
            self.file.close()

    with pytest.raises(StorageError) as caught:
        Trainer(ToyModel(), recipe(tmp_path, steps=2), loaders(), hooks=[Full()]).fit()
    assert str(caught.value).startswith(f"{tmp_path}: No space left on device: ")
    assert str(caught.value).endswith("are free; make room there. No checkpoint was written yet")


def test_another_error_of_the_system_stays_what_it_is(tmp_path):
    class Gone(Hook):
        def before_step(self, trainer):
            open(tmp_path / "nothing")

    with pytest.raises(FileNotFoundError):
        Trainer(ToyModel(), recipe(tmp_path), loaders(), hooks=[Gone()]).fit()


def test_a_read_only_folder_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match=rf"train.output: {tmp_path} cannot be written to; name another folder"):
        Trainer(ToyModel(), recipe(tmp_path / "deep" / "run"), loaders())
    error = OSError(errno.EROFS, "Read-only file system", str(tmp_path / "home" / "index"))
    assert explain(error, "x") == f"{tmp_path}/home/index: Read-only file system: {tmp_path} cannot be written to"
    assert explain(OSError(errno.EFBIG, "File too large"), tmp_path).startswith(f"{tmp_path}: File too large: this process may")


def test_a_run_that_fails_before_its_first_step_takes_away_only_what_it_made(tmp_path):
    class Fails(Hook):
        def before_step(self, trainer):
            (tmp_path / "notes" / "of_the_run.txt").write_text("made")
            (tmp_path / "made").mkdir()
            (tmp_path / "made" / "file").touch()
            raise RuntimeError("nothing works")

    trainer = Trainer(ToyModel(), recipe(tmp_path), loaders(), hooks=[JsonLines(), Fails()])
    (tmp_path / "notes").mkdir()  # somebody's, while the run gets ready
    (tmp_path / "notes" / "mine.txt").write_text("kept")
    with pytest.raises(RuntimeError, match="nothing works"):
        trainer.fit()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["notes", "notes/mine.txt"]
    assert (tmp_path / "notes" / "mine.txt").read_text() == "kept"


if __name__ == "__main__":
    limited(Path(sys.argv[1]))
