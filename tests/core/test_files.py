import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from counterpoise.core.files import make_folder, new_folder, write_files
from counterpoise.errors import ConfigError


def test_texts_and_bytes_in_a_new_folder(tmp_path):
    written = write_files(tmp_path / "deep" / "er", {"a.md": "é", "b.png": b"\x00"}, what="the report")
    assert written == {"a.md": str(tmp_path / "deep/er/a.md"), "b.png": str(tmp_path / "deep/er/b.png")}
    assert (tmp_path / "deep/er/a.md").read_bytes() == "é".encode()
    assert (tmp_path / "deep/er/b.png").read_bytes() == b"\x00"
    assert sorted(os.listdir(tmp_path / "deep/er")) == ["a.md", "b.png"]


def test_files_have_the_default_permissions_and_links_stay(tmp_path):
    mask = os.umask(0)
    os.umask(mask)
    (tmp_path / "link.md").symlink_to(tmp_path / "real.md")
    write_files(tmp_path, {"link.md": "new"}, what="the report")
    assert (tmp_path / "link.md").is_symlink()
    assert (tmp_path / "real.md").read_text() == "new"
    assert (tmp_path / "real.md").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_full_disk_leaves_the_old_file_whole(tmp_path):
    """The limit on a file's size stands for the end of the disk: part of the new content is written, then it fails."""
    write_files(tmp_path, {"report.html": "old"}, what="the report")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(ConfigError, match="the report cannot be written") as caught:
            write_files(tmp_path, {"report.html": "new" * 4096}, what="the report", where="--out here")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.where == "--out here"
    assert caught.value.remedy
    assert (tmp_path / "report.html").read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_an_error_before_the_last_step_leaves_the_old_file_whole(tmp_path, monkeypatch):
    write_files(tmp_path, {"a": "old"}, what="the report")

    def failing(*paths):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_files(tmp_path, {"a": "new"}, what="the report")
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_kill_while_writing_leaves_a_whole_file(tmp_path):
    """A process replaces a large file over and over; killed at any moment, it leaves one of its contents."""
    code = (
        "import sys; from pathlib import Path; from counterpoise.core.files import write_files\n"
        "for turn in range(10**9):\n"
        "    write_files(Path(sys.argv[1]), {'a': bytes([65 + turn % 2]) * 10**7}, what='it')"
    )
    for pause in (0.0, 0.01, 0.023):
        writing = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
        while not (tmp_path / "a").exists():
            time.sleep(0.005)
        time.sleep(pause)
        writing.kill()
        writing.wait()
        content = (tmp_path / "a").read_bytes()
        assert len(content) == 10**7
        assert len(set(content)) == 1
        (tmp_path / "a").unlink()


@pytest.mark.parametrize("write", [make_folder, lambda folder, **said: write_files(folder, {"a": ""}, **said)])
def test_a_folder_that_is_a_file(write, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the tables cannot be written"):
        write(tmp_path / "file" / "deep", what="the tables")


def test_a_file_that_is_a_folder(tmp_path):
    (tmp_path / "look.png").mkdir()
    with pytest.raises(ConfigError, match="the preview cannot be written"):
        write_files(tmp_path, {"look.png": b""}, what="the preview")
    assert os.listdir(tmp_path) == ["look.png"]


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path):
    def half_written():
        with new_folder(tmp_path / "deep" / "out", what="the export") as folder:
            (folder / "a").write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_written()
    assert os.listdir(tmp_path) == []
    with new_folder(tmp_path / "deep" / "out", what="the export") as folder:
        (folder / "a").write_text("")
    assert os.listdir(tmp_path / "deep") == ["out"]
    assert os.listdir(tmp_path / "deep" / "out") == ["a"]
