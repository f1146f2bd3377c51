"""The cases of test_odd_files.py."""

FORMATS = [  # first bytes of the file; words of the error
    (b"PK\x03\x04", "a zip or Excel file, no CSV - unpack it; of Excel's: pandas.read_excel"),
    (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        'an old Excel file, no CSV - pandas.read_excel("x.csv").to_csv',
    ),
    (b"\x1f\x8b\x08", "a gzip file, no CSV - name it .csv.gz"),
    (b"BZh91AY&SY\xd0", "a bzip2 file, no CSV - unpack it: bunzip2 x.csv"),
    (b"\xfd7zXZ\x00", "an xz file, no CSV - unpack it: unxz x.csv"),
    (b"PAR1", 'a Parquet file, no CSV - pandas.read_parquet("x.csv").to_csv'),
    (b"SQLite format 3\x00", "an SQLite file, no CSV - export the table as CSV"),
    (b'{"id": 1}\n', 'JSON, no CSV - pandas.read_json("x.csv", lines=True)'),
    (b"\xef\xbb\xbf[{", 'JSON, no CSV - pandas.read_json("x.csv").to_csv'),
    (b"<!DOCTYPE html>", "HTML or XML, no CSV - download the CSV itself"),
    (b'<?xml version="1.0"?>', "HTML or XML, no CSV"),
    (
        b"version https://git-lfs.github.com/spec/v1\n",
        "a Git LFS pointer, not the file - fetch the file, in its folder: git lfs pull",
    ),
]

NEAR_MISSES = [  # header; flags; the hint
    (
        "id,text,very  happy,sad,x",
        ["--labels", "very happy", "sad"],
        "did you mean 'very  happy'? name it with --labels",
    ),
    (
        "id,text,Joy,Angry,x",
        ["--labels", "joy", "angr"],
        "did you mean 'Joy', 'Angry'? name it with --labels",
    ),
    ("id,text,joy,anger,x", ["--labels", "joy", "hope"], "add it, or name others with --labels"),
    ("id,text,hope,calm,x", ["--labels", "rage,woe"], "name yours with --labels"),
    ("id,text,joy,joys,x", ["--labels", "joys", "joyss"], "add it, or name others with --labels"),
    (
        "id,tweets,joy,anger,x",
        ["--labels", "joy", "--text-column", "tweet"],
        "did you mean 'tweets'? name it with --text-column",
    ),
    ("id,Text,joy,anger,x", ["--labels", "joy"], "did you mean 'Text'? name it with --text-column"),
    ("id,said,Text,anger,x", ["--labels", "Text"], "name it with --text-column"),
    (
        "id,text,joy,anger,Part",
        ["--labels", "joy", "--fold-column", "part"],
        "did you mean 'Part'?",
    ),
    (
        "id,text,joy,anger,author_id",
        ["--labels", "joy", "--group-column", "author id"],
        "did you mean 'author_id'?",
    ),
    ("id,text,joy,anger,x", ["--labels", "joy", "--group-column", "author"], "name one of them"),
]

COMMAS = [  # flags; the flag as the message shows it, for a table of the labels joy and very happy
    (["--labels", "joy,very happy"], "--labels joy 'very happy'"),
    (["--labels", "joy,", "very happy"], "--labels joy 'very happy'"),
    (["--labels", "very happy , joy,"], "--labels 'very happy' joy"),
]

NO_HEADER = [  # the first row of a table of the labels joy and anger; the line that it lacks
    ("17,i am so happy,0,1", "id,text,joy,anger"),
    ("1,i am so happy,1,0", "id,text,joy,anger"),
    ("17,hello,0,0", "id,text,joy,anger"),
    ("x3f,i am so happy,1,1", "id,text,joy,anger"),
    ("17,i am so happy", "id,text"),
    ("17,i am so happy,0", "id,text,..."),
    ("-3.5,été à la plage", "id,text"),
]

NO_NAMES = [  # other columns; what makes a cell of row i
    (["Hope", "rater"], [lambda i: i % 2, lambda i: "ab"[i % 2]]),  # 0 and 1: a label to be named
    (["rater"], [lambda i: i % 4]),
    (["label"], [lambda i: "a"]),
    (["note"], [lambda i: f"note {i}"]),
    (["answer"], [lambda i: "a long answer " * 4 + "ab"[i % 2]]),
    ([], []),
]
