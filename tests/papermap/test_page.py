"""The committed page of the map."""

from pathlib import Path

from cad.papermap.page import PAGE, page

ROOT = Path(__file__).parents[2]


def test_the_committed_page_is_the_generated_one() -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(ROOT), "run `python -m cad.papermap` and commit its page"
