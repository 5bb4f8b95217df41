"""States on disk: the newest whole one is found, whatever happened to the others."""

import hashlib
import logging

import pytest
import torch

from utils.runs.states import FORMAT, SavedStates, StateError, read_state

STATE = {"tensors": {"a": torch.arange(3.0)}, "list": [1, 2.5, None, True], "text": "größer"}


def numbers(folder):
    """What the states in a folder hold, newest first."""
    return [read_state(file)["number"] for file in sorted(folder.glob("*.state"), reverse=True)]


def test_a_state_comes_back_as_it_was(tmp_path):
    states = SavedStates(tmp_path / "resume")
    assert not states
    assert states.newest() is None
    states.save(STATE)
    found = states.newest()
    assert torch.equal(found.pop("tensors")["a"], torch.arange(3.0))
    assert found == {"list": [1, 2.5, None, True], "text": "größer"}


def test_two_are_kept_newest_first_and_numbers_go_on(tmp_path):
    states = SavedStates(tmp_path)
    for number in range(12):
        states.save({"number": number})
        assert len(list(tmp_path.iterdir())) == min(2, number + 1)
    assert numbers(tmp_path) == [11, 10]
    SavedStates(tmp_path).save({"number": 12})
    assert numbers(tmp_path) == [12, 11]


@pytest.mark.parametrize("harm", ["cut off", "flipped", "emptied", "another format", "forged"])
def test_a_damaged_state_is_passed_over_with_a_warning(tmp_path, caplog, harm):
    states = SavedStates(tmp_path)
    states.save({"number": 0})
    states.save({"number": 1})
    file = tmp_path / "000001.state"
    content = bytearray(file.read_bytes())
    if harm == "flipped":
        content[-20] ^= 4
    forged = FORMAT + hashlib.sha256(b"no state").hexdigest().encode() + b"\nno state"
    harmed = {"cut off": content[:-1], "emptied": b"", "another format": b"x" + content, "forged": forged}
    file.write_bytes(bytes(harmed.get(harm, content)))
    with caplog.at_level(logging.WARNING):
        assert states.newest() == {"number": 0}
    assert f"{file}: " in caplog.text
    assert "using the state before it" in caplog.text
    assert file.exists()
    states.save({"number": 2})
    assert numbers(tmp_path) == [2, 0]  # the damaged one is none of the two


def test_a_whole_state_can_be_of_no_use(tmp_path, caplog):
    states = SavedStates(tmp_path)
    for number in range(2):
        states.save({"number": number})

    def check(state):
        if state["number"]:
            raise StateError("too late")

    with caplog.at_level(logging.WARNING):
        assert states.newest(check) == {"number": 0}
    assert f"{tmp_path / '000001.state'}: too late; using the state before it" in caplog.text


def test_no_pickle_of_a_stranger_is_run(tmp_path):
    ran = tmp_path / "ran"

    class Stranger:
        def __reduce__(self):
            return type(ran).touch, (ran,)

    SavedStates(tmp_path).save({"x": Stranger()})
    with pytest.raises(StateError, match="cannot be read"):
        read_state(tmp_path / "000000.state")
    assert not ran.exists()


def test_a_state_that_cannot_be_written_leaves_those_before(tmp_path, monkeypatch):
    states = SavedStates(tmp_path)
    for number in range(2):
        states.save({"number": number})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        states.save({"number": 2})
    assert numbers(tmp_path) == [1, 0]
    assert len(list(tmp_path.iterdir())) == 2
