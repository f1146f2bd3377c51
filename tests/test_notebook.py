"""The programs in a notebook's session, by a real kernel. pytest tests/test_notebook.py"""

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


IMPORT = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
import errno, predict, train, tools.compare, tools.distil, tools.export
from support.process import exit_codes
def full(argv): raise OSError(errno.ENOSPC, "No space left on device", "out.csv")
pass"""
UNKNOWN = "unrecognized arguments: --nope"
HELP = "--help lists the flags"


@pytest.fixture(scope="module")
def kernel():
    manager, client = start_new_kernel()
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run(client, code: str, during=None) -> str:
    """What a cell prints and shows. `during(text so far)` is called after each message."""
    client.execute(code)
    text, deadline = "", time.monotonic() + 120
    while time.monotonic() < deadline:
        message = client.get_iopub_msg(timeout=60)
        content = message["content"]
        text += content.get("text", "") if message["msg_type"] == "stream" else ""
        if message["msg_type"] == "error":
            text += "\n".join([f"ERROR {content['ename']}", *content["traceback"]])
        if message["msg_type"] == "execute_result":
            text += "OUT " + content["data"]["text/plain"]
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


@pytest.mark.parametrize("way", ["%run", "main"])
def test_an_interrupt_stops_the_run_and_not_the_kernel(way, kernel, bert, tmp_path):
    """The cell ends with KeyboardInterrupt, in one line; the state is saved."""
    manager, client = kernel
    path = write_csv(tmp_path / "t.csv", make_rows(40))
    flags = f"--model {bert} --train {path} --folds 2 --epochs 5000 --out {tmp_path / 'a'}"
    cell = f"{IMPORT}; train.main({flags.split()!r})"
    if way == "%run":
        cell = f"%run {HERE / 'train.py'} {flags}"
    sent = []

    def interrupt(text: str) -> None:
        if "epoch  3/" in text and not sent:
            sent.append(manager.interrupt_kernel())

    text = run(client, cell, interrupt)
    line = "ERROR KeyboardInterrupt\nstopped: by SIGINT - run the same command to resume"
    assert sent and text.endswith(line), text[-500:]
    assert (tmp_path / "a" / "fold_0" / "state.pt").exists()
    assert run(client, "print(6 * 7)") == "42\n" and manager.is_alive()


@pytest.mark.parametrize(
    "cell, said",
    [
        ("train.main(['--nope'])", f"{UNKNOWN} - python train.py {HELP}"),
        ("predict.main(['--nope'])", f"{UNKNOWN} - python predict.py {HELP}"),
        ("tools.distil.main(['--nope'])", f"{UNKNOWN} - python tools/distil.py {HELP}"),
        ("tools.export.main(['a', 'b', '--nope'])", f"{UNKNOWN} - python tools/export.py {HELP}"),
        ("train.main(['--train', 'x.csv'])", "x.csv: no such file (a CSV)"),
        ("tools.compare.main(['/none', '/none'])", "/none: is no run - name the folder"),
        ("predict.load_run('/none')", "/none: no such run folder - give one that train.py made"),
        ("exit_codes(lambda argv: 3)([])", "exit code 3 - the lines above say why"),
        ("exit_codes(full)([])", "out.csv: No space left on device"),
    ],
)
def test_what_a_command_says_is_one_line_of_an_exception(cell, said, kernel):
    """The script whose main was called is named, and not the kernel's program."""
    _, client = kernel
    text = run(client, f"{IMPORT}; {cell}")
    assert text.startswith(f"ERROR UserError\nerror: {said}") and text.count("\n") == 1, text


def test_debug_shows_the_traceback_too(kernel):
    _, client = kernel
    text = run(client, f"{IMPORT}; train.main(['--nope', '--debug'])")
    assert "in parse_args\n" in text and f"UserError: {UNKNOWN}" in text, text


def test_run_all_stops_at_what_fails_and_not_at_help(kernel):
    _, client = kernel
    assert run(client, f"{IMPORT}; train.main(['--help'])").endswith("OUT 0")
    while client.shell_channel.msg_ready():
        client.get_shell_msg()
    failing = client.execute(f"{IMPORT}; import time; time.sleep(1); train.main(['--nope'])")
    next_cell = client.execute("print('went on')")
    status = {}
    while len(status) < 2:
        reply = client.get_shell_msg(timeout=60)
        if (cell := reply["parent_header"]["msg_id"]) in (failing, next_cell):
            status[cell] = reply["content"]["status"]
    assert status == {failing: "error", next_cell: "aborted"}
