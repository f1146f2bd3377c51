"""The cases of test_splits.py: one row each, and what makes their files."""

from pathlib import Path

from conftest import LABELS, make_rows, write_csv

HEAD, ROWS, ROW = ",".join(["id", "text", *LABELS]), make_rows(12), "\n1,a,0,0,0,0,1"
FOLD, GROUP = ["--fold-column", "part"], ["--group-column", "author"]
VALID, SOFT = ["--valid", "dev.csv"], ["--soft-labels", "--folds", "2"]


def sheet(path: Path, rows: list[list], **columns) -> Path:
    """A CSV of `rows` and more columns, each a list or a function of the row number."""
    cells = [
        [c[i] if isinstance(c, list) else c(i) for c in columns.values()] for i in range(len(rows))
    ]
    return write_csv(
        path, [r + c for r, c in zip(rows, cells, strict=True)], ["id", "text", *LABELS, *columns]
    )


def part(*cells):
    """What makes a train.csv whose first cells of `part` are these, then 0 and 1 in turn."""
    return lambda d: sheet(d / "train.csv", ROWS, part=lambda i: [*cells, *"01" * 6][i])


def authors(author, text=None):
    rows = [[r[0], text or r[1], *r[2:]] for r in ROWS]
    return lambda d: sheet(d / "train.csv", rows, author=author)


def share(cell: str):
    return lambda d: sheet(
        d / "train.csv", [*ROWS[:2], [*ROWS[2][:4], cell, *ROWS[2][5:]], *ROWS[3:]]
    )


def dev(content: str):
    return lambda d: (d / "dev.csv").write_text(content)


ERRORS = [  # what makes the files; flags; words of the error, the last may be what it must not say
    *((part("0", c), FOLD, ["train.csv:3 column 'part'", "is no fold", "whole number", "-1"]) for c in ("a", "1.0", "-2", "1e0", "", "9" * 30, "-1.0", "nan", "\uff11")),
    (part("3"), FOLD, ["no row has fold 2", "without a gap"]),
    (part(*"1" * 12), FOLD, ["no row has fold 0"]),
    (part(*"0" * 12), FOLD, ["every row has 0"]),
    (part(*["-1"] * 12), FOLD, ["every row has -1"]),
    (part(), [*FOLD, "--folds", "3"], ["--folds 3", "has 2"]),
    (part(), [*FOLD, "--folds", "1"], ["--folds 1", "has 2"]),
    (part(), [*FOLD, "--fold", "2"], ["--fold 2", "from 0 to 1"]),
    (part(), [*FOLD, *VALID], ["--valid", "--fold-column"]),
    (part(), [*FOLD, "--group-column", "part"], ["'part' is named by two flags"]),
    *((part(), [flag, name], [f"'{name}'", words]) for flag in ("--fold-column", "--group-column")
      for name, words in (("Part", "no column"), ("joy", "label"), ("id", "the id"), ("text", "text column"))),
    (part(), ["--fold-column", ""], ["--fold-column holds an empty"]),
    (lambda d: write_csv(d / "train.csv", [[*r, 0, 1] for r in ROWS], [*HEAD.split(","), "part", "part"]), FOLD, ["'part': duplicate name"]),
    (authors(lambda i: "all"), GROUP, ["only 1 distinct texts or groups for 5 folds"]),
    (authors(lambda i: i % 4), GROUP, ["only 4 distinct texts or groups for 5 folds"]),
    (authors(lambda i: i % 4), [*GROUP, "--folds", "1"], ["only 4 distinct texts or groups", "hold-out"]),
    (authors(lambda i: i, "ok"), GROUP, ["only 1 distinct texts or groups"]),
    (dev(""), VALID, ["dev.csv:1: the file or its header is empty"]),
    (dev(HEAD), VALID, ["dev.csv: a header and no rows"]),
    (dev("id,text\n1,a\n"), VALID, ["dev.csv:1: no label column"]),
    (dev(HEAD.replace("anger", "rage") + ROW), VALID, ["dev.csv:1: no label column anger"]),
    (dev(HEAD + ROW[:-1] + "2"), VALID, ["dev.csv:2 column 'surprise': must be 0 or 1"]),
    (dev(HEAD.replace("text", "words,more") + ROW), VALID, ["dev.csv:1: no text column", "'more'"]),
    (dev(f"{HEAD},x{ROW},1"), VALID, ["dev.csv:1: 'x' could be labels too"]),
    (lambda d: (d / "dev.csv").mkdir(), VALID, ["dev.csv: is a folder"]),
    (dev("x"), ["--valid", "dve.csv"], ["dve.csv: no such file", "dev.csv"]),
    (dev("x"), ["--valid", ""], ["--valid holds an empty"]),
    (dev(HEAD + ROW), [*VALID, "--folds", "5"], ["--valid", "--folds"]),
    (dev(HEAD + ROW), [*VALID, "--fold", "1"], ["--fold 1", "0"]),
    (lambda d: [authors(str)(d), dev(HEAD + ROW)(d)], [*VALID, *GROUP], ["dev.csv:1: no column 'author'"]),
    *((share(c), SOFT, ["train.csv:4 column 'joy'", "share from 0 to 1"]) for c in ("nan", "inf", "-0.1", "1.1", ",5", "0,5", "", "50%", "1/2", "-1", "0_1", "\u0660.5")),
    (share("0.4"), ["--folds", "2"], ["must be 0 or 1 ('0.4')", "--soft-labels"]),
    (share("2"), ["--folds", "2"], ["must be 0 or 1 ('2')", "!--soft-labels"]),
]  # fmt: skip

LARGE_GROUPS = [  # author and text of row i; words of the warning; what it must not say
    (lambda i: i % 10 if i < 20 else "", lambda i: i < 10 and "ok", ["20 of 40 rows belong together", "the text 'ok' joins 10 groups"], "\0"),
    (lambda i: "me" if i < 12 else i, lambda i: "", ["12 of 40 rows belong together", "(me)"], "joins"),
    (lambda i: "me" if i < 8 else i, lambda i: "", [], "belong together"),  # just a fold's share
    (lambda i: i, lambda i: i < 20 and "  ", [], "belong together"),
    (lambda i: "x" * 999 if i < 12 else i, lambda i: "", ["12 of 40 rows"], "x" * 300),
]  # fmt: skip
