"""Numbers in the documentation come from committed result files."""

from benchmarks.table import PAGE, render_speed
from tests.faults import page


def test_the_page_on_speed_is_made_of_the_result_files() -> None:
    assert PAGE.read_text() == render_speed(), "run python -m benchmarks.table"


def test_the_page_on_reliability_is_made_of_the_result_files() -> None:
    assert page.PAGE.read_text() == page.render(page.PAGE.read_text()), "run python -m tests.faults.page"
