"""train.py in a notebook's session, by a real kernel. python -m pytest tests/test_notebook.py"""

import json
import time

import pytest
from conftest import make_rows, write_csv
from jupyter_client.manager import start_new_kernel

from config import HERE

STATE = """
import json, os, signal, warnings
def state():
    handlers = [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    return [dict(os.environ), handlers, [str(f) for f in warnings.filters]]
"""


@pytest.fixture(scope="module")
def kernel():
    manager, client = start_new_kernel()
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run(client, code: str, during=None) -> str:
    """What a cell prints. `during(text so far)` is called after each message."""
    client.execute(code)
    text, deadline = "", time.monotonic() + 120
    while time.monotonic() < deadline:
        message = client.get_iopub_msg(timeout=60)
        content = message["content"]
        text += content.get("text", "") if message["msg_type"] == "stream" else ""
        if message["msg_type"] == "error":
            text += "ERROR " + content["ename"]
        if during:
            during(text)
        if message["msg_type"] == "status" and content["execution_state"] == "idle" and text:
            return text
    raise AssertionError(text)


def test_a_session_is_left_as_it_was(kernel, bert, tmp_path):
    """Environment, signal handlers and warning filters; matplotlib goes on drawing in the
    notebook."""
    _, client = kernel
    path = write_csv(tmp_path / "t.csv", make_rows(40))
    flags = f"--model {bert} --train {path} --folds 2 --epochs 1 --out {tmp_path / 'a'}"
    # What the libraries do when they are imported is theirs.
    imports = f"import sys; sys.path.insert(0, {str(HERE)!r}); import train"
    run(client, f"{STATE}\n{imports}\nbefore = state(); print(1)")
    text = run(client, f"%run {HERE / 'train.py'} {flags}")
    assert "cross-fitted (quote this one)" in text and "ERROR" not in text, text
    text = run(
        client,
        "import matplotlib\nprint(json.dumps([before, state()])); print(matplotlib.get_backend())",
    )
    pair, backend = text.splitlines()[:2]
    before, after = json.loads(pair)
    assert before[0].items() ^ after[0].items() == set()
    assert before == after
    assert "inline" in backend  # though train.py was the first to import matplotlib


def test_an_interrupt_stops_the_run_and_not_the_kernel(kernel, bert, tmp_path):
    manager, client = kernel
    path = write_csv(tmp_path / "t.csv", make_rows(40))
    flags = f"--model {bert} --train {path} --folds 2 --epochs 5000 --out {tmp_path / 'a'}"
    sent = []

    def interrupt(text: str) -> None:
        if "epoch  3/" in text and not sent:
            sent.append(manager.interrupt_kernel())

    text = run(client, f"%run {HERE / 'train.py'} {flags}", interrupt)
    assert sent and "stopped: by SIGINT - run the same command to resume" in text, text[-500:]
    assert run(client, "print(6 * 7)") == "42\n" and manager.is_alive()
