"""What test_mutations.py puts into files and flags."""

PIECES = [b'"', b'""', b",", b"\n", b"\r", b"\r\n", b"\n\n", b"\0", b"\xef\xbb\xbf", b"\xff", b"\xc3", b"\xed\xa0\x80", "😀é\u2028\u0085\u200b".encode(),
          b" ", b"\t", b";", b"'", b"\\", b"id", b"text", b"review", b"joy", b"0", b"1", b"2", b"nan", b"NA", b"true", b"-1", b"#", b"=1+1", b"\x1a", b"x" * 300]  # fmt: skip
FLAG_WORDS = ["", " ", "-", "--", "-1", "0x10", "1_0", "1e2", "nan", "None", "true", "cuda", "mps", "cpu", "auto", "fp32", "cosine", "mean", "joy", "id", "text", "t.csv", "n.csv",
              "run", "th.npy", "run/th.npy", "fold_0", ".", "..", "/dev/null", "a/b", "a" * 300, "\0", "\udcff", "\ud800", "é😀\n", "%s", "@t.csv", "{}"]  # fmt: skip
