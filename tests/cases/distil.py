"""The cases of test_distil.py's bad input: one row each."""

ERRORS = [  # what it is; arguments; words of the error
    ("no teacher", ["--texts", "{texts}"], ["--teacher is missing"]),
    ("no texts", ["{run}"], ["--texts is missing"]),
    ("no such teacher", ["{d}/none", "--texts", "{texts}"], ["none: no such run folder"]),
    ("unfinished", ["{d}/half", "--texts", "{texts}"], ["fold 1 is missing", "same train.py command"]),
    ("other labels", ["{run}", "--labels", "anger", "joy", "--texts", "{texts}"], ["--labels: anger joy", "anger fear joy"]),
    ("other folds", ["{run}", "--folds", "4", "--texts", "{texts}"], ["done: has other folds"]),
    ("other seed of folds", ["{run}", "--split-seed", "7", "--texts", "{texts}"], ["has other folds"]),
    ("other rows", ["{run}", "--train", "{test}", "--texts", "{texts}"], ["test.csv: not what", "done was trained on"]),
    ("no such texts", ["{run}", "--texts", "{d}/no.csv"], ["no.csv"]),
    ("empty file", ["{run}", "--texts", "{d}/empty.csv"], ["empty.csv"]),
    ("no rows", ["{run}", "--texts", "{d}/header.csv"], ["header.csv: no new text"]),
    ("nothing new", ["{run}", "--texts", "{train}"], ["train.csv: no new text"]),
    ("no text column", ["{run}", "--texts", "{d}/odd.csv"], ["odd.csv:1: no text column 'text'"]),
    ("share", ["{run}", "--texts", "{texts}", "--teacher-share", "2"], ["--teacher-share must lie in 0 ... 1"]),
    ("single: no student", ["--single", "{d}/none"], ["none/config.json"]),
    ("single: no student of ours", ["--single", "{run}"], ["is no student that distil.py trained"]),
    ("a folder with another config.json", ["{run}/fold_0", "--texts", "{texts}"], ["env.json"]),
    ("single: not its student", ["--single", "{run}", "--teacher", "{run}", "--texts", "{texts}"], ["not taught by"]),
]  # fmt: skip
