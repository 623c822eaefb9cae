//! A counter with a parent and a terminal: a shell that waits for it, on a terminal of its own. Both must not notice what happens to its node.

use std::fs;
use std::path::PathBuf;

use mosix_lab::Child;

use crate::bed::{self, Bed, eventually};
use crate::counter::{SCRIPT, STATUS, assert_no_gap};
use crate::processes;

/// Notes the terminal's modes before and after, the counter's pid, and how it ended.
const PARENT: &str = r#"stty -g >"$1.before"
env "$2" sh -c "$3" sh "$1" </dev/null & p=$!
echo $p >"$1.tmp"; mv "$1.tmp" "$1.pid"
wait $p
echo $? >>"$1.status"
stty -g >"$1.after""#;

/// How a counter ended, as its parent saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// As it was asked to.
    Asked,
    /// By SIGKILL: with the node that held it, or with its home's daemon.
    Killed,
}

/// A running job of `node1`.
pub(crate) struct Job {
    terminal: Child,
    _keys: std::io::PipeWriter,
    pid: i32,
    mark: String,
    file: PathBuf,
}

impl Job {
    /// Starts one and waits until it counts.
    pub(crate) fn start(bed: &Bed, mark: &str) -> Self {
        let file = bed.file(mark);
        let script = file.with_extension("parent");
        let parent = format!("set -- '{}' '{}' '{}'\n{PARENT}\n", file.display(), bed.mark_variable(mark), SCRIPT.replace('\'', r"'\''"));
        fs::write(&script, parent).unwrap();
        let (stdin, keys) = std::io::pipe().unwrap();
        let command = format!("sh {}", script.display());
        let argv = ["script".into(), "-qfec".into(), command.into(), "/dev/null".into()];
        // The mark is for the counter alone, hence another one here.
        let terminal = bed.start(bed.program(&format!("parent-{mark}"), argv.into()).stdin(stdin));
        let pid = eventually("the parent tells the pid", || {
            let text = fs::read_to_string(file.with_extension("pid")).map_err(|error| error.to_string())?;
            text.trim().parse().map_err(|_| text)
        });
        let job = Self { terminal, _keys: keys, pid, mark: mark.into(), file };
        job.assert_goes_on();
        job
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    fn numbers(&self) -> String {
        fs::read_to_string(&self.file).unwrap_or_default()
    }

    fn assert_goes_on(&self) {
        let before = self.numbers().len();
        eventually("the counter goes on", || {
            if self.numbers().len() > before { Ok(()) } else { Err(format!("{} stays at {before} bytes", self.mark)) }
        });
    }

    /// How it ended, if its parent has been told.
    fn status(&self) -> Option<String> {
        fs::read_to_string(self.file.with_extension("status")).ok().filter(|text| text.ends_with('\n'))
    }

    /// Waits until it is clear: one body, which counts, on one of these nodes; or none, and its parent knows its end. `None`: it ended.
    pub(crate) fn settled(&self, bed: &Bed) -> Option<String> {
        let place = eventually("one body that counts, or none and a parent that knows", || match bed.places(&self.mark).as_slice() {
            [] if self.status().is_some() => Ok(None),
            [place] if self.status().is_none() => {
                let before = self.numbers().len();
                std::thread::sleep(std::time::Duration::from_millis(60));
                if self.numbers().len() > before { Ok(Some(place.clone())) } else { Err(format!("the body on {place} does not count")) }
            }
            places => Err(format!("bodies on {places:?}, status {:?}", self.status())),
        });
        assert_no_gap(&self.mark, &self.numbers());
        self.assert_parent_undisturbed(place.is_none());
        place
    }

    /// Nobody stopped, ended or lost the parent: it still waits (or has noted one end), and its terminal is there.
    fn assert_parent_undisturbed(&self, ended: bool) {
        if ended {
            return;
        }
        let outside = self.terminal.pid_outside().expect("the terminal's program has a pid");
        let state = processes::state(outside);
        assert!(matches!(state, Some('S' | 'R')), "{}: the terminal's program is {state:?}", self.mark);
        let parents: Vec<_> = processes::descendants(outside).into_iter().filter(|(_, name)| name == "sh").collect();
        assert!(
            parents.iter().any(|(pid, _)| matches!(processes::state(*pid), Some('S' | 'R'))),
            "{}: the parent does not wait any more: {parents:?}",
            self.mark
        );
    }

    /// Ends it, wherever it is, unless it has ended already; the parent must have seen exactly one end, the right one, and its terminal must be as
    /// it was.
    pub(crate) fn finish(mut self, bed: &Bed, end: End) {
        fs::write(self.file.with_extension("stop"), "").unwrap();
        let status = bed::status(&mut self.terminal);
        assert!(status.success(), "{}: the terminal's program ended with {status}", self.mark);
        let wanted = match end {
            End::Asked => STATUS,
            End::Killed => 128 + nix::sys::signal::Signal::SIGKILL as i32,
        };
        assert_eq!(self.status().as_deref().map(str::trim), Some(wanted.to_string().as_str()), "{}: its parent saw another end", self.mark);
        let modes = |name| fs::read_to_string(self.file.with_extension(name)).unwrap();
        assert_eq!(modes("after"), modes("before"), "{}: the terminal's modes", self.mark);
        assert_no_gap(&self.mark, &self.numbers());
        eventually("no body is left", || {
            let places = bed.places(&self.mark);
            if places.is_empty() { Ok(()) } else { Err(format!("{} is on {places:?}", self.mark)) }
        });
    }
}
