// java Clock MIB RATE: holds MIB MiB of known pages, rewrites RATE MiB/s of them; a thread reads the clock.
//
// Says the lines that churn says (see ../src/report.rs): a report at SIGHUP, the end after SIGTERM or the end of stdin; exits with 1 if a page was
// ever wrong.

import java.time.Instant;
import java.util.ArrayDeque;
import java.util.Random;
import java.util.StringJoiner;
import java.util.concurrent.locks.LockSupport;

@SuppressWarnings("removal")
public final class Clock {
    private static final int PAGE_WORDS = 512;
    private static final double NOTABLE_MS = 2;
    private static final int MAX_GAPS = 64;

    private static final ArrayDeque<double[]> gaps = new ArrayDeque<>();
    private static double largestMs;
    private static volatile boolean asked;
    private static volatile boolean ended;

    private final long[][] pages;
    private final int[] versions;
    private long written;
    private long wrongEver;

    private Clock(int mib) {
        pages = new long[mib << 8][PAGE_WORDS];
        versions = new int[mib << 8];
        for (int page = 0; page < pages.length; page++) {
            write(page);
        }
    }

    private static double nowMs() {
        Instant now = Instant.now();
        return now.getEpochSecond() * 1e3 + now.getNano() / 1e6;
    }

    private static void watchClock() {
        double last = nowMs();
        while (true) {
            LockSupport.parkNanos(200_000);
            double now = nowMs();
            double ms = now - last;
            last = now;
            synchronized (gaps) {
                largestMs = Math.max(largestMs, ms);
                if (ms > NOTABLE_MS) {
                    if (gaps.size() == MAX_GAPS) {
                        gaps.removeFirst();
                    }
                    gaps.add(new double[] {now, ms});
                }
            }
        }
    }

    private static void watchInput() {
        try {
            while (System.in.read() >= 0) {
                // Nothing is said that matters.
            }
        } catch (java.io.IOException error) {
            // As good as its end.
        }
        ended = true;
    }

    private long word(int page, int index) {
        return (page + 1) * 0x9e3779b97f4a7c15L ^ (versions[page] * 31L + index) * 0xbf58476d1ce4e5b9L;
    }

    private void write(int page) {
        for (int index = 0; index < PAGE_WORDS; index++) {
            pages[page][index] = word(page, index);
        }
    }

    private boolean isRight(int page) {
        for (int index = 0; index < PAGE_WORDS; index++) {
            if (pages[page][index] != word(page, index)) {
                return false;
            }
        }
        return true;
    }

    private void tell(String event) {
        StringJoiner list = new StringJoiner(",", "[", "]");
        double most;
        synchronized (gaps) {
            gaps.forEach(gap -> list.add("{\"until_ms\":" + gap[0] + ",\"ms\":" + gap[1] + "}"));
            most = largestMs;
        }
        int wrong = 0;
        int first = -1;
        for (int page = 0; page < pages.length; page++) {
            if (!isRight(page)) {
                first = wrong++ == 0 ? page : first;
            }
        }
        wrongEver += wrong;
        synchronized (gaps) {
            gaps.clear();
            largestMs = 0;
        }
        System.out.println("{\"event\":\"" + event + "\",\"largest_ms\":" + most + ",\"gaps\":" + list + ",\"written_bytes\":" + written
            + ",\"checked_pages\":" + pages.length + ",\"bad_pages\":" + wrong
            + ",\"first_bad\":" + (first < 0 ? "null" : "\"page " + first + "\"") + "}");
        System.out.flush();
        written = 0;
    }

    private void run(double rate) {
        Random random = new Random(1);
        double owed = 0;
        double last = nowMs();
        while (!ended) {
            LockSupport.parkNanos(2_000_000);
            if (asked) {
                asked = false;
                tell("report");
            }
            double now = nowMs();
            // What was not written while it stood still is not made up for.
            owed += Math.min(Math.max(now - last, 0), 20) / 1000 * rate * 256;
            last = now;
            for (; owed >= 1; owed--) {
                int page = random.nextInt(pages.length);
                versions[page]++;
                write(page);
                written += 4096;
            }
        }
        tell("end");
        System.exit(wrongEver > 0 ? 1 : 0);
    }

    private static void start(Runnable what) {
        Thread thread = new Thread(what);
        thread.setDaemon(true);
        thread.start();
    }

    public static void main(String[] args) {
        sun.misc.Signal.handle(new sun.misc.Signal("HUP"), signal -> asked = true);
        sun.misc.Signal.handle(new sun.misc.Signal("TERM"), signal -> ended = true);
        Clock clock = new Clock(Integer.parseInt(args[0]));
        start(Clock::watchClock);
        start(Clock::watchInput);
        System.out.println("{\"event\":\"ready\",\"mib\":" + args[0] + "}");
        System.out.flush();
        clock.run(Double.parseDouble(args[1]));
    }
}
