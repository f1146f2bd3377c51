"""What runs would be: python tools/parts/identities.py CODE < commands.json

CODE is a folder with train.py, perhaps patched. commands.json is a list of its flags, a list each.
Prints as JSON, for each command, the identity its run would have (as in env.json, without threads),
or what is wrong with it. Data are read once: all commands are to have the same. Nothing trains.
"""

import contextlib
import json
import sys

if __name__ == "__main__":
    sys.path[0] = sys.argv[1]  # in place of this file's folder

from dataclasses import replace

from config import Config
from data import Table, encode, read_data, split
from support.cli import parse
from support.device import resolve_device
from support.encoders import check_weights, inspect_encoder
from support.process import UserError, exit_codes
from support.run import run_identity
from train import default_rate_and_epochs


def identity_of(argv: list[str], rows: list[Table], weights: dict[str, str]) -> dict:
    """As train.py goes, up to the run's folder. `rows` and `weights` are kept for the next."""
    config = parse(Config, argv, "train.py")
    device, precision = resolve_device(config.device, config.precision)
    config = replace(config, device=device, precision=precision)
    if not rows:
        rows.append(read_data(config))
    table = split(rows[0], config)
    encoder_info = inspect_encoder(config.model, as_saved=True)
    rate, epochs = default_rate_and_epochs(encoder_info.num_parameters, len(table))
    config = config.resolved(encoder_info, table, rate, epochs)
    if config.model not in weights:
        dataset = encode(encoder_info.tokenizer, table.inputs, config.max_length)
        weights[config.model] = check_weights(encoder_info, dataset)
    identity = run_identity(config, table, encoder_info, weights[config.model], 1)
    return {name: value for name, value in identity.items() if name != "threads"}


@exit_codes
def main(argv: list[str] | None = None) -> int:
    answers = []
    rows, weights = [], {}
    with contextlib.redirect_stdout(sys.stderr):
        for command in json.load(sys.stdin):
            try:
                answers.append(identity_of(command, rows, weights))
            except UserError as e:
                answers.append(str(e))
    print(json.dumps(answers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
