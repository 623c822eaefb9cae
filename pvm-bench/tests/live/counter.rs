//! A process that shows whether it was ever lost, set back or doubled: it appends 0, 1, 2, ... to a file.

use std::fs;
use std::path::PathBuf;

use mosix_lab::Child;

use crate::bed::{self, Bed, eventually};

/// What it ends with when it is asked to.
pub(crate) const STATUS: i32 = 7;

/// No forks and no other files: dash and bash do all of this themselves.
pub(crate) const SCRIPT: &str = r#"exec >>"$1"; i=0
while [ ! -e "$1.stop" ]; do
    echo $i; i=$((i+1)); j=0
    while [ $j -lt 200 ]; do j=$((j+1)); done
done
exit 7"#;

/// A running counter on `node1`.
pub(crate) struct Counter {
    pub(crate) child: Child,
    mark: String,
    file: PathBuf,
}

impl Counter {
    /// Starts one and waits until it counts.
    pub(crate) fn start(bed: &Bed, mark: &str) -> Self {
        let file = bed.file(mark);
        let child = bed.start(bed.script(mark, SCRIPT, &[&file]));
        let counter = Self { child, mark: mark.into(), file };
        counter.assert_goes_on();
        counter
    }

    /// At home.
    pub(crate) fn pid(&self) -> i32 {
        self.child.pid()
    }

    fn numbers(&self) -> String {
        fs::read_to_string(&self.file).unwrap_or_default()
    }

    /// It counts at this moment.
    pub(crate) fn assert_goes_on(&self) {
        let before = self.numbers().len();
        eventually("the counter goes on", || {
            if self.numbers().len() > before { Ok(()) } else { Err(format!("{} stays at {before} bytes", self.mark)) }
        });
    }

    /// Exactly one body of it is alive, on this node.
    pub(crate) fn assert_one_at(&self, bed: &Bed, node: &str) {
        eventually("exactly one body", || {
            let places = bed.places(&self.mark);
            if places == [node] { Ok(()) } else { Err(format!("{} is on {places:?} instead of {node}", self.mark)) }
        });
        self.assert_goes_on();
        self.assert_no_gap();
    }

    /// No number is missing and none came twice.
    pub(crate) fn assert_no_gap(&self) {
        assert_no_gap(&self.mark, &self.numbers());
    }

    /// It was killed: nothing of it is left on any node.
    pub(crate) fn assert_gone(&mut self, bed: &Bed) {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(bed::status(&mut self.child).signal(), Some(libc_sigkill()), "{}", self.mark);
        eventually("no body is left", || {
            let places = bed.places(&self.mark);
            if places.is_empty() { Ok(()) } else { Err(format!("{} is on {places:?}", self.mark)) }
        });
        self.assert_no_gap();
    }

    /// Ends it, wherever it is, and checks its status at home.
    pub(crate) fn finish(mut self, bed: &Bed) {
        fs::write(self.file.with_extension("stop"), "").unwrap();
        assert_eq!(bed::status(&mut self.child).code(), Some(STATUS), "{}", self.mark);
        self.assert_no_gap();
        eventually("no body is left", || {
            let places = bed.places(&self.mark);
            if places.is_empty() { Ok(()) } else { Err(format!("{} is on {places:?}", self.mark)) }
        });
    }
}

/// No number is missing and none came twice.
pub(crate) fn assert_no_gap(who: &str, text: &str) {
    // The last line may be half written.
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    for (expected, line) in complete.lines().enumerate() {
        assert_eq!(line, expected.to_string(), "{who}, line {expected}: set back, doubled or torn");
    }
}

fn libc_sigkill() -> i32 {
    nix::sys::signal::Signal::SIGKILL as i32
}
