// clock.js MIB RATE: holds MIB MiB of known pages, rewrites RATE MiB/s of them; a worker thread reads the clock.
//
// Says the lines that churn says (see ../src/report.rs): a report at SIGHUP, the end after SIGTERM or the end of stdin; exits with 1 if a page was
// ever wrong. The clock is Date.now(), of whole ms: the finer ones are set back when a process is restored, and would hide the gap.
'use strict';
const fs = require('fs');
const { Worker, isMainThread, workerData } = require('worker_threads');

const PAGE_WORDS = 1024;
const NOTABLE_MS = 2;
const MAX_GAPS = 64;

function watchClock(shared) {
  // [number of gaps, largest, then pairs of end and length in a ring]
  const seen = new Float64Array(shared);
  const pause = new Int32Array(new SharedArrayBuffer(4));
  let last = Date.now();
  for (;;) {
    Atomics.wait(pause, 0, 0, 0.2);
    const now = Date.now();
    const ms = now - last;
    last = now;
    seen[1] = Math.max(seen[1], ms);
    if (ms > NOTABLE_MS) {
      const place = 2 + 2 * (seen[0] % MAX_GAPS);
      seen[place] = now;
      seen[place + 1] = ms;
      seen[0] += 1;
    }
  }
}

function say(event, more) {
  fs.writeSync(1, JSON.stringify({ event, ...more }) + '\n');
}

function main() {
  const mib = Number(process.argv[2]);
  const rate = Number(process.argv[3]);
  const pages = mib * 256;
  const shared = new SharedArrayBuffer(8 * (2 + 2 * MAX_GAPS));
  const seen = new Float64Array(shared);
  const memory = new Uint32Array(mib << 18);
  const versions = new Uint32Array(pages);
  const word = (page, index) => (Math.imul(page + 1, 2654435761) ^ Math.imul(versions[page] + index, 40503)) >>> 0;
  const write = (page) => {
    for (let index = 0; index < PAGE_WORDS; index++) memory[page * PAGE_WORDS + index] = word(page, index);
  };
  const isRight = (page) => {
    for (let index = 0; index < PAGE_WORDS; index++) if (memory[page * PAGE_WORDS + index] !== word(page, index)) return false;
    return true;
  };
  for (let page = 0; page < pages; page++) write(page);
  let wrongEver = 0;
  let written = 0;
  const tell = (event) => {
    const count = seen[0];
    const gaps = [];
    for (let number = Math.max(0, count - MAX_GAPS); number < count; number++) {
      const place = 2 + 2 * (number % MAX_GAPS);
      gaps.push({ until_ms: seen[place], ms: seen[place + 1] });
    }
    const largest = seen[1];
    let wrong = 0;
    let first = null;
    for (let page = 0; page < pages; page++) {
      if (!isRight(page)) {
        wrong += 1;
        first ??= `page ${page}`;
      }
    }
    wrongEver += wrong;
    seen[0] = 0;
    seen[1] = 0;
    say(event, { largest_ms: largest, gaps, written_bytes: written, checked_pages: pages, bad_pages: wrong, first_bad: first });
    written = 0;
  };
  const end = () => {
    tell('end');
    process.exit(wrongEver > 0 ? 1 : 0);
  };
  new Worker(__filename, { workerData: shared });
  process.on('SIGHUP', () => tell('report'));
  process.on('SIGTERM', end);
  process.stdin.on('data', () => {}).on('end', end);
  let last = Date.now();
  let owed = 0;
  setInterval(() => {
    const now = Date.now();
    // What was not written while it stood still is not made up for.
    owed += Math.min(Math.max(now - last, 0), 20) / 1000 * rate * 256;
    last = now;
    for (; owed >= 1; owed--) {
      const page = Math.floor(Math.random() * pages);
      versions[page] += 1;
      write(page);
      written += 4096;
    }
  }, 2);
  say('ready', { pid: process.pid, mib });
}

if (isMainThread) main();
else watchClock(workerData);
