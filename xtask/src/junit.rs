//! Counts test results in the JUnit file that nextest writes.
//!
//! A test that lacks something on the machine passes, but says `skipped: why`; here it counts as skipped.
//! Only what nextest writes is understood: this is no general XML reader.

/// Result of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Tests that ran and found nothing wrong.
    pub(crate) passed: usize,
    /// Tests that failed or were killed.
    pub(crate) failed: usize,
    /// Tests that did not run, or said `skipped:`.
    pub(crate) skipped: usize,
    /// `test: why` of those that said it.
    pub(crate) reasons: Vec<String>,
}

impl Counts {
    /// Adds another run's results.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.reasons.extend(other.reasons);
    }
}

/// Counts the test cases in `xml`.
pub(crate) fn count(xml: &str) -> Counts {
    let mut counts = Counts::default();
    for case in cases(xml) {
        if case.contains("<failure") || case.contains("<error") {
            counts.failed += 1;
        } else if let Some(why) = skip_reason(&unescape(case)) {
            counts.skipped += 1;
            let name = attribute(case, "name").unwrap_or_default();
            counts.reasons.push(format!("{}: {why}", unescape(name)));
        } else {
            counts.passed += 1;
        }
    }
    counts
}

/// Each `<testcase ...>` with what is in it.
fn cases(xml: &str) -> impl Iterator<Item = &str> {
    xml.split("<testcase ").skip(1).map(|rest| {
        let head = rest.split_once('>').map_or(rest, |(head, _)| head);
        if head.ends_with('/') { head } else { rest.split("</testcase>").next().unwrap_or(rest) }
    })
}

fn attribute<'a>(case: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = case.split_once(&format!("{name}=\""))?;
    rest.split_once('"').map(|(value, _)| value)
}

/// The reason on the first `skipped: why` line. The test harness may have written `test name ... ` on the same line.
fn skip_reason(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let line = line.trim_start();
        let line = line.strip_prefix("<system-out>").or_else(|| line.strip_prefix("<system-err>")).unwrap_or(line);
        let said = match line.strip_prefix("test ") {
            Some(harness) => harness.split_once(" ... ")?.1,
            None => line,
        };
        let why = said.strip_prefix("skipped: ")?;
        Some(why.split("</system-").next().unwrap_or(why).trim().to_owned())
    })
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'").replace("&amp;", "&")
}

/// The number of tests that nextest did not run (`#[ignore]`), from its summary line
/// `Summary [   1.2s] 3 tests run: 3 passed, 2 skipped`. Nothing if a filter was given: then most are left out on purpose.
pub(crate) fn ignored(summary: &str) -> usize {
    summary
        .lines()
        .rev()
        .find(|line| line.trim_start().starts_with("Summary ["))
        .and_then(|line| line.split([',', ':']).find_map(|part| part.trim().strip_suffix(" skipped")))
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="5" failures="2" errors="0" time="1.0">
    <testsuite name="a" tests="5" disabled="0" errors="0" failures="2">
        <testcase name="fine" classname="a" time="0.1">
            <system-out>running 1 test
test fine ... ok
it was not skipped: really
</system-out>
            <system-err></system-err>
        </testcase>
        <testcase name="quiet" classname="a" time="0.1"/>
        <testcase name="lab_up" classname="a" time="0.1">
            <system-out>running 1 test
test lab_up ... skipped: no &lt;root&gt; &amp; no cgroups
ok</system-out>
        </testcase>
        <testcase name="on_err" classname="a" time="0.1">
            <system-err>skipped: no BTF</system-err>
        </testcase>
        <testcase name="bad" classname="a" time="0.1">
            <failure message="thread panicked" type="test failure">oh</failure>
            <system-out>skipped: but it failed</system-out>
        </testcase>
    </testsuite>
</testsuites>
"#;

    #[test]
    fn a_test_that_says_so_is_skipped_unless_it_failed() {
        let counts = count(XML);
        assert_eq!((counts.passed, counts.failed, counts.skipped), (2, 1, 2));
        assert_eq!(counts.reasons, ["lab_up: no <root> & no cgroups", "on_err: no BTF"]);
    }

    #[test]
    fn nothing_is_counted_in_nothing() {
        assert_eq!(count(""), Counts::default());
    }

    #[test]
    fn ignored_tests_are_in_the_summary() {
        assert_eq!(ignored("     Summary [   0.5s] 35 tests run: 34 passed, 1 failed, 2 skipped\n"), 2);
        assert_eq!(ignored("     Summary [   0.5s] 35 tests run: 35 passed, 0 skipped\n"), 0);
        assert_eq!(ignored("error: no tests to run"), 0);
    }
}
