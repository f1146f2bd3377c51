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
