"""clock.py MIB RATE: holds MIB MiB of known pages, rewrites RATE MiB/s of them, and reads the clock.

Says the lines that churn says (see ../src/report.rs): a report at SIGHUP, the end after SIGTERM or the end of stdin; exits with 1 if a page was
ever wrong.
"""

import json
import os
import random
import signal
import struct
import sys
import threading
import time
from array import array

PAGE = 4096
MIB = int(sys.argv[1])
RATE = float(sys.argv[2])
PAGES = MIB << 8
NOTABLE_MS = 2.0
MAX_GAPS = 64

asked = threading.Event()
ended = threading.Event()
gaps = []
largest = [0.0]


def text(page, version):
    return struct.pack("<II", page, version) * (PAGE // 8)


def watch_clock():
    last = time.time()
    while True:
        time.sleep(0.0002)
        now = time.time()
        ms = (now - last) * 1000
        last = now
        largest[0] = max(largest[0], ms)
        if ms > NOTABLE_MS:
            gaps.append((now * 1000, ms))
            del gaps[:-MAX_GAPS]


def watch_input():
    while os.read(0, 64):
        pass
    ended.set()


def say(event, **more):
    line = json.dumps({"event": event, **more}) + "\n"
    os.write(1, line.encode())


def main():
    sys.setswitchinterval(0.0003)
    signal.signal(signal.SIGHUP, lambda *_: asked.set())
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    memory = bytearray(MIB << 20)
    versions = array("I", bytes(4 * PAGES))
    for page in range(PAGES):
        memory[page * PAGE : (page + 1) * PAGE] = text(page, 0)
    chooser = random.Random(1)
    wrong_ever = 0
    written = 0
    owed = 0.0
    threading.Thread(target=watch_clock, daemon=True).start()
    threading.Thread(target=watch_input, daemon=True).start()

    def tell(event):
        nonlocal written, wrong_ever
        seen, most = list(gaps), largest[0]
        wrong = [page for page in range(PAGES) if memory[page * PAGE : (page + 1) * PAGE] != text(page, versions[page])]
        wrong_ever += len(wrong)
        del gaps[:]
        largest[0] = 0.0
        say(
            event,
            largest_ms=most,
            gaps=[{"until_ms": until, "ms": ms} for until, ms in seen],
            written_bytes=written,
            checked_pages=PAGES,
            bad_pages=len(wrong),
            first_bad=f"page {wrong[0]}" if wrong else None,
        )
        written = 0

    say("ready", pid=os.getpid(), mib=MIB)
    last = time.time()
    while not ended.is_set():
        time.sleep(0.002)
        if asked.is_set():
            asked.clear()
            tell("report")
        now = time.time()
        # What was not written while it stood still is not made up for.
        owed += min(max(now - last, 0), 0.02) * RATE * 256
        last = now
        for _ in range(int(owed)):
            page = chooser.randrange(PAGES)
            versions[page] += 1
            memory[page * PAGE : (page + 1) * PAGE] = text(page, versions[page])
            written += PAGE
        owed -= int(owed)
    tell("end")
    sys.exit(1 if wrong_ever else 0)


main()
