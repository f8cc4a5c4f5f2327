"""`fortifai sql` in a terminal of 80 columns: columns and cells are cut, never stacked; CSV and JSON are in full."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from artifacts import put
from flows.tools.result_table import fit, print_rows
from storage.store.store import ArtifactStore

WIDE = "select *, content as again, key || key as long from artifacts"


def in_terminal(store: ArtifactStore, width: int, *arguments: str) -> list[str]:
    """The lines that `fortifai ARGUMENTS` prints into a terminal of that width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment |= {"FORTIFAI_STORE": store.url, "NO_COLOR": "1", "TERM": "dumb", "TTY_COMPATIBLE": "1"}
    command = [sys.executable, "-m", "flows.cli", *arguments]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                block = os.read(ours, 4096)
            except OSError:  # how Linux says that the other end was closed
                break
            if not block:
                break
            said += block
    os.close(ours)
    assert process.returncode == 0, said.decode()
    return said.decode().splitlines()


@pytest.fixture
def filled(store_url: str) -> ArtifactStore:
    store = ArtifactStore(store_url)
    put(store, "model", "a" * 64)
    put(store, "split", "b" * 64)
    return store


def test_a_wide_query_is_a_line_a_row_in_a_terminal_of_80_columns(filled: ArtifactStore) -> None:
    lines = in_terminal(filled, 80, "sql", WIDE)
    assert len(lines) == 4, lines  # names, two rows, what was cut
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].split()[:2] == ["kind", "key"] and lines[0].split()[-1] == "long"
    assert " … " in lines[0], "columns in the middle are left out"
    assert lines[1].startswith("model") and "aaaaaaa…" in lines[1]
    assert "of 13 columns" in lines[3] and "--csv" in lines[3]
    narrow = in_terminal(filled, 80, "sql", "select kind, stage_version from artifacts order by kind")
    assert [line.split() for line in narrow] == [["kind", "stage_version"], ["model", "2"], ["split", "2"]]


def test_csv_json_and_a_pipe_are_in_full(filled: ArtifactStore, tmp_path: Path) -> None:
    def piped(*options: str) -> str:
        command = [sys.executable, "-m", "flows.cli", "sql", WIDE, *options]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    names, *rows = csv.reader(io.StringIO(piped("--csv")))
    assert len(names) == 13 and [row[names.index("long")] for row in rows] == ["a" * 128, "b" * 128]
    assert [row["long"] for row in json.loads(piped("--json"))] == ["a" * 128, "b" * 128]
    lines = piped().splitlines()
    assert len(lines) == 3 and "a" * 128 in lines[1]


@pytest.mark.parametrize("width", [10, 40, 80, 200])
@pytest.mark.parametrize("natural", [[3], [3, 4], [300], [5] * 40, [1, 200, 1, 200], [64] * 7])
def test_what_is_shown_fits_and_keeps_the_first_and_last_column(natural: list[int], width: int) -> None:
    shown, widths = fit(natural, width)
    kept = [place for place in shown if place is not None]
    assert kept == sorted(kept) and kept[0] == 0
    assert len(kept) == 1 or kept[-1] == len(natural) - 1
    assert sum(widths[place] + 2 for place in kept) - 2 + 3 * (None in shown) <= width
    if sum(natural) + 2 * len(natural) - 2 <= width:
        assert kept == list(range(len(natural))) and [widths[place] for place in kept] == natural


def test_no_line_is_wider_than_the_terminal_whatever_is_in_the_cells() -> None:
    output = io.StringIO()
    console = Console(file=output, width=60, force_terminal=True, color_system=None)
    rows = [["[red]x[/]\nsecond line", 1 / 3, None, "戦場" * 30], ["a", 2.0, "b", "c"]]
    print_rows(["text", "number", "nothing", "wide"], rows, console)
    lines = output.getvalue().splitlines()
    assert len(lines) == 4 and all(cell_len(line) <= 60 for line in lines)
    assert lines[1].startswith("[red]x[/] second") and "0.333333" in lines[1] and lines[1].endswith("戦…")
