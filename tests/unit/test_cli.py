"""The command line used in haste: an error is a line and a status, and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from csi_local.cli import main

if TYPE_CHECKING:
    from pathlib import Path


def run(*arguments: str | bytes, **streams: int) -> subprocess.CompletedProcess[str]:
    """Run the program itself."""
    argv = [sys.executable, "-m", "csi_local", *arguments]
    return subprocess.run(argv, check=False, text=True, stderr=subprocess.PIPE, **streams)  # type: ignore[call-overload,no-any-return]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that was said."""
    text = capsys.readouterr().err
    assert text.startswith("csi-local: ")
    assert text.count("\n") == 1
    assert len(text) < 2500
    return text


RUN_DIR = ["--pool", "a=path:/none", "--run-dir", "/\udcff"]
BAD_FILES = {
    "runDir: /a\nrunDir: /b": "'runDir' is given twice",
    "pools: [{name: a, path: /x, path: /y}]": "'path' is given twice",
    "[" * 5000: "nested too deeply",
    "runDir: 2001-99-99": "month must be",
    "maxVolumes: " + "9" * 6000: "limit",
    "maxVolumes: !!int x": "invalid literal",
    "runDir: !!timestamp x": "not YAML",
    "registration: !!bool x": "not YAML",
    "endpoint: [x]": "endpoint is not a plain value: ['x']",
    "httpAddress:": "is not a plain value: None",
    "runDir: {a: b}": "is not a plain value",
    "#" * (1 << 21): "longer than 1 MiB",
    "pools: &a [*a]": "must be a string or a mapping",
    'runDir: "/a\\0b"': "cannot be printed",
    "namespace: ../x": "namespace '../x'",
}


@pytest.mark.parametrize("content", BAD_FILES, ids=range(len(BAD_FILES)))
def test_files_that_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    pool = [] if "pools" in content else ["--pool", "a=path:/none"]
    assert main(["pools", "--config", str(path), *pool]) == 2
    assert BAD_FILES[content] in said(capsys)


def test_aliases_that_multiply(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten of ten, twelve times over: nobody writes that out."""
    levels = ["- &a0 a=path:/x"]
    levels += [f"- &a{depth} [{', '.join([f'*a{depth - 1}'] * 10)}]" for depth in range(1, 13)]
    lines = ["pools:", "- name: a", "  path:", *(f"  {line}" for line in levels)]
    path = tmp_path / "config.yaml"
    path.write_text("\n".join(lines))
    assert main(["pools", "--config", str(path)]) == 2
    assert "not a plain value" in said(capsys)


@pytest.mark.parametrize(
    "words", [["--config", ""], ["--pool", f"a={'x' * 100_000}"], ["--pool", "a\n\x1b[2J"], RUN_DIR]
)
def test_words_that_are_wrong(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(["pools", *words]) == 2
    said(capsys)


def test_what_never_ends_is_not_read_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pools", "--config", "/dev/zero"]) == 2
    assert "longer than 1 MiB" in said(capsys)
    keys = ["--old-key-file", "/dev/zero", "--new-key-file", "/dev/zero"]
    assert main(["rotate-key", "v", "--pool", "a=path:/none", *keys]) == 2
    assert "must hold 1 to 4096 bytes" in said(capsys)


def test_a_demo_where_there_is_no_room_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--dir", "/dev/null"]) == 2
    assert "--dir /dev/null: Not a directory" in said(capsys)


def test_a_reader_that_has_gone() -> None:
    """As ``| head`` does."""
    reader, writer = os.pipe()
    os.close(reader)
    done = run("doctor", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_output_that_cannot_be_written() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    done = run("doctor", stdout=full)
    os.close(full)
    assert (done.returncode, done.stderr) == (1, "csi-local: [Errno 28] No space left on device\n")


def test_standard_files_that_are_closed() -> None:
    """What is opened next must not get their numbers."""
    program = "import os; [os.close(n) for n in range(3)]; import sys; os.execv(sys.executable, sys.argv[1:])"
    here = "import csi_local.__main__ as m; m._open_standard_files(); import os; os._exit(os.pipe()[0] != 3)"
    argv = [sys.executable, "-c", program, sys.executable, "-c", here]
    assert subprocess.run(argv, check=False).returncode == 0
    argv[-2:] = ["-m", "csi_local", "doctor"]
    assert subprocess.run(argv, check=False).returncode in (0, 1)


def test_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("csi_local.doctor.doctor", interrupted)
    assert main(["doctor"]) == 130
