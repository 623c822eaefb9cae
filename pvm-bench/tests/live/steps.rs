//! The steps of a real move, as they are seen from outside: by what the daemon says while it goes on, and by what there is at its two ends.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mosix_wire::control::{Reply, Request};

use crate::bed::{Bed, PASSING};
use crate::processes;

/// Between two looks.
const LOOK: Duration = Duration::from_micros(200);
/// For an answer.
const ANSWER: Duration = Duration::from_secs(120);

/// A step, from the moment on at which it can be seen. In the order in which they come.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// The daemon has said so many words of progress.
    Said(usize),
    /// The agent runs at the target.
    Agent,
    /// CRIU runs at the source.
    SourceCriu,
    /// The body is frozen at the source.
    Frozen,
    /// Images come in at the target.
    Images,
    /// CRIU runs at the target.
    TargetCriu,
    /// The commit is in home's log.
    Committed,
}

/// A move that is watched.
pub(crate) struct Watched<'a> {
    bed: &'a Bed,
    source: usize,
    target: usize,
    known_records: usize,
    said: Mutex<Vec<String>>,
    answered: AtomicBool,
}

impl<'a> Watched<'a> {
    pub(crate) fn new(bed: &'a Bed, source: usize, target: usize) -> Self {
        let known_records = bed.commit_records().len();
        Self { bed, source, target, known_records, said: Mutex::default(), answered: AtomicBool::new(false) }
    }

    /// Asks for the move and hears all of the answer; an error is the reason in words.
    pub(crate) fn go(&self, pid: i32) -> Result<(), String> {
        let target = self.bed.node(self.target).name.clone();
        let socket = self.bed.socket(0).unwrap().to_owned();
        let result = loop {
            self.said.lock().unwrap().clear();
            match self.ask(&socket, &Request::Migrate { pid, target: target.clone() }) {
                Err(why) if PASSING.iter().any(|passing| why.contains(passing)) => std::thread::sleep(Duration::from_millis(2)),
                other => break other,
            }
        };
        self.answered.store(true, Ordering::Release);
        result
    }

    fn ask(&self, socket: &Path, request: &Request) -> Result<(), String> {
        let mut stream = UnixStream::connect(socket).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        writeln!(stream, "{}", serde_json::to_string(request).unwrap()).map_err(|error| error.to_string())?;
        for line in BufReader::new(stream).lines() {
            let line = line.map_err(|error| error.to_string())?;
            match serde_json::from_str(&line).map_err(|error| format!("{error}: {line}"))? {
                Reply::Progress { stage } => self.said.lock().unwrap().push(stage),
                Reply::Moved(_) => return Ok(()),
                Reply::Error { message } => return Err(message),
                other => return Err(format!("an answer to another question: {other:?}")),
            }
        }
        Err("the daemon said nothing more".into())
    }

    /// The words of progress so far.
    pub(crate) fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }

    pub(crate) fn was_committed(&self) -> bool {
        self.bed.was_committed(self.known_records)
    }

    /// Waits until the step can be seen; `false` if the move was answered before.
    pub(crate) fn wait_for(&self, step: &Step) -> bool {
        loop {
            let answered = self.answered.load(Ordering::Acquire);
            if self.is_reached(step) {
                return true;
            }
            if answered {
                return false;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// All steps that are seen until the answer, in the order in which they were seen first.
    pub(crate) fn record(&self) -> Vec<Step> {
        let fixed = [Step::Agent, Step::SourceCriu, Step::Frozen, Step::Images, Step::TargetCriu, Step::Committed];
        let mut seen = Vec::new();
        loop {
            let answered = self.answered.load(Ordering::Acquire);
            for number in 1..=self.said().len() {
                note(&mut seen, Step::Said(number));
            }
            for step in fixed.iter().filter(|step| self.is_reached(step)) {
                note(&mut seen, step.clone());
            }
            if answered {
                return seen;
            }
            std::thread::sleep(LOOK);
        }
    }

    fn is_reached(&self, step: &Step) -> bool {
        match step {
            Step::Said(number) => self.said.lock().unwrap().len() >= *number,
            Step::Agent => self.helper(self.target, "mosix-agent").is_some(),
            Step::SourceCriu => self.helper(self.source, "criu").is_some(),
            Step::TargetCriu => self.helper(self.target, "criu").is_some(),
            Step::Frozen => self.is_frozen(),
            Step::Images => has_bytes(&self.bed.state_dir(self.target).join("images")),
            Step::Committed => self.bed.commit_records().len() > self.known_records && self.was_committed(),
        }
    }

    /// The first of a node's helpers with this name: what CRIU restores is called like CRIU until it has its own name back.
    pub(crate) fn helper(&self, node: usize, name: &str) -> Option<i32> {
        let helpers = processes::descendants(self.bed.daemon(node));
        helpers.into_iter().find(|(_, comm)| comm.starts_with(name)).map(|(pid, _)| pid)
    }

    fn is_frozen(&self) -> bool {
        let root = self.bed.node(self.source).cgroup_v2_path.as_ref().expect("cgroup v2 was found").join("mosix");
        let groups = fs::read_dir(root).into_iter().flatten().flatten();
        groups
            .map(|group| group.path().join("cgroup.events"))
            .any(|events| fs::read_to_string(events).is_ok_and(|text| text.contains("frozen 1")))
    }
}

fn note(seen: &mut Vec<Step>, step: Step) {
    if !seen.contains(&step) {
        seen.push(step);
    }
}

fn has_bytes(dir: &PathBuf) -> bool {
    fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => has_bytes(&entry.path()),
        Ok(metadata) => metadata.len() > 0,
        Err(_) => false,
    })
}
