"""A stop reaches the run whatever is in its way, and cuts no clean-up short."""

import signal
import subprocess
import sys
import time

import pytest

LOST_IN = {
    "a weak reference's callback": """
class Thing: pass
thing = Thing()
def callback(_):
    print("ready", flush=True)
    time.sleep(1)
reference = weakref.ref(thing, callback)
del thing
time.sleep(30)
""",
    "a library that catches everything": """
try:
    print("ready", flush=True)
    time.sleep(30)
except:
    pass
time.sleep(30)
""",
    "nothing": """
print("ready", flush=True)
time.sleep(30)
""",
}
PROGRAM = """
import sys, time, weakref
from rowsft.cli import signals
signals.on_signals()
try:
    try:
{body}
    finally:
        time.sleep(1.5)
        print("cleaned up", flush=True)
except KeyboardInterrupt as error:
    time.sleep(1.2)
    signals.arrived()
    print(error, flush=True)
time.sleep(1.2)
print("ended", flush=True)
"""


@pytest.mark.parametrize("place", LOST_IN)
def test_a_stop_arrives_once_wherever_it_was_lost(place):
    body = "\n".join(f"        {line}" for line in LOST_IN[place].splitlines())
    command = [sys.executable, "-c", PROGRAM.format(body=body)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=25)
    assert out.splitlines() == ["cleaned up", "stopped by SIGTERM", "ended"]
    assert process.returncode == 0


# Stopped between the start of a pool's thread and its entry among those that Python wakes when it ends.
POOL = """
import concurrent.futures.thread as pools, os, signal, weakref
from rowsft.cli import main, signals
class Entry(weakref.WeakKeyDictionary):
    def __setitem__(self, thread, queue):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 5)
pools._threads_queues = Entry()
signals.END_SECONDS = 1.0
def dispatch(arguments):
    signals.on_signals()
    pool = pools.ThreadPoolExecutor(1)
    pool.submit(len, "")
main._dispatch = dispatch
main.main([])
"""


def test_a_thread_that_nobody_wakes_keeps_no_stopped_process():
    done = subprocess.run([sys.executable, "-c", POOL], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "rowsft: interrupted; finished runs are untouched\n")


# What is left for the interpreter to take down, long after the time that threads have for ending.
SLOW_END = """
import sys, time
from rowsft.cli import signals
signals.END_SECONDS = 0.2
class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(1)
kept = Slow()
signals.arrived()
sys.exit(130)
"""


def test_an_interpreter_that_ends_slowly_keeps_the_status_of_a_stop():
    done = subprocess.run([sys.executable, "-c", SLOW_END], capture_output=True, timeout=60, check=False)
    assert done.returncode == 130, done
