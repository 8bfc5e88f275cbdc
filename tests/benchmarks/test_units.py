"""Units of work: order, needs, and what stays done."""

from pathlib import Path
from typing import Any

from benchmarks.units import Unit, do_units, read_done, ready, with_needs, without_needs, write_done


def double(number: int, log: Path) -> dict[str, Any]:
    with log.open("a") as file:
        file.write(f"{number}\n")
    if number == 13:
        raise ValueError("no thirteen")
    return {"twice": 2 * number}


def unit(folder: Path, name: str, number: int, *needs: str) -> Unit:
    return Unit(name, folder / f"{name}.json", double, (number, folder / "log"), needs)


def test_a_unit_is_ready_when_all_that_it_needs_is_done(tmp_path: Path) -> None:
    units = [unit(tmp_path, "c", 1, "a", "b"), unit(tmp_path, "a", 1), unit(tmp_path, "b", 1)]
    assert [one.name for one in ready(units, (), ())] == ["a", "b"]
    assert [one.name for one in ready(units, ("a",), ("b",))] == []
    assert [one.name for one in ready(units, ("a", "b"), ())] == ["c"]


def test_needs_are_followed_through_and_keep_their_order() -> None:
    needs = {"a": (), "b": ("a",), "c": (), "d": ("b",)}
    assert with_needs(["d"], needs) == ["a", "b", "d"]
    assert with_needs([], needs) == []


def test_what_was_never_started_says_what_it_lacks(tmp_path: Path) -> None:
    units = [unit(tmp_path, "a", 1), unit(tmp_path, "b", 1, "a")]
    assert without_needs(units, (), {"a": "broken"}) == {"b": "needs a"}


def test_a_result_made_with_other_arguments_is_not_done(tmp_path: Path) -> None:
    one = unit(tmp_path, "a", 1)
    assert read_done(one) is None
    write_done(one, {"twice": 2}, 1.0)
    kept = read_done(one)
    assert kept is not None and kept["found"] == {"twice": 2}
    assert read_done(unit(tmp_path, "a", 2)) is None
    one.done.write_text("{")
    assert read_done(one) is None


def test_a_failure_stops_only_what_needs_it_and_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    units = [
        unit(tmp_path, "bad", 13),
        unit(tmp_path, "after_bad", 1, "bad"),
        unit(tmp_path, "good", 2),
        unit(tmp_path, "after_good", 3, "good"),
    ]
    for _ in range(2):
        outcome = do_units(units, jobs=1)
        assert outcome.found == {"good": {"twice": 4}, "after_good": {"twice": 6}}
        assert outcome.failed == {"bad": "ValueError: no thirteen", "after_bad": "needs bad"}
        assert set(outcome.seconds) == {"good", "after_good"}
    assert sorted((tmp_path / "log").read_text().split()) == ["13", "13", "2", "3"]
