"""What the README alone has: its first line, the table of stages, its length. What all pages share: test_docs.py."""

import re

from pages import DAG, PAGES, outputs

README = PAGES[0]


def test_the_first_line_says_what_this_is_and_links_the_paper() -> None:
    first = README.text.splitlines()[0]
    assert "unofficial reproduction" in first
    assert "](https://arxiv.org/abs/2312.06663)" in first


def test_every_stage_of_the_dag_has_its_folder_in_the_table() -> None:
    rows = re.findall(r"^\| (\w+) \| `(cad [^`]+)` \| `([^`]+)` \|", README.text, re.MULTILINE)
    assert {name for name, _, _ in rows} == set(DAG)
    for name, command, folder in rows:
        body = DAG[name].get("do", DAG[name])
        assert command == body["cmd"].replace("${key}", "ENTRY")
        assert all(out.startswith(folder.rstrip("/")) for out in outputs() if f"/{name}" in out)


def test_it_can_be_read_in_one_sitting() -> None:
    assert len(README.text.splitlines()) <= 210
