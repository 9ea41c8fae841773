"""Every kind of teacher, as recipes/teachers.py shows it."""

import runpy

import pytest
import recipe_helpers


@pytest.mark.slow
def test_each_kind_teaches(tmp_path, capsys):
    script = runpy.run_path(str(recipe_helpers.ROOT / "recipes" / "teachers.py"))
    assert script["main"](["--steps", "4", "--texts", "60", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out.split("| kind ")[-1].splitlines()[2:]
    rows = {cells[1].strip(): cells for cells in (line.split("|") for line in shown if line.startswith("|"))}
    assert set(rows) == set(script["KINDS"])
    for kind, cells in rows.items():
        assert 0 < float(cells[4]) < float(cells[3]), f"{kind}: the KL did not fall"
