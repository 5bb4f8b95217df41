"""How the commands end, and where their tables go."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.command import make_parser, run_command, write_parts
from utils.errors import UserError


@pytest.mark.parametrize(("main", "code"), [(lambda _: None, 0), (lambda _: 1, 1), (len, 2)])
def test_the_exit_code_is_the_commands(
    main: Callable[..., int | None], code: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["command", "--one", "--two"])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == code


def test_a_users_error_is_its_message_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: object) -> None:
        raise UserError("no such file")

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "no such file\n"


def test_help_shows_the_description_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser("some", "First.\n\n    python -m benchmarks.some").parse_args(["--help"])
    assert (
        "usage: python -m benchmarks.some [-h]\n\nFirst.\n\n    python -m benchmarks.some\n" in capsys.readouterr().out
    )


def test_each_text_goes_into_the_part_of_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "some.md"
    document.write_text("<!-- a begin -->\nold\n<!-- a end -->\n<!-- b begin -->\nold\n<!-- b end -->\n")
    write_parts(document, {"b": "second\n", "a": "first\n"})
    assert document.read_text() == "<!-- a begin -->\nfirst\n<!-- a end -->\n<!-- b begin -->\nsecond\n<!-- b end -->\n"
    assert capsys.readouterr().out == "second\n\nfirst\n\n"
