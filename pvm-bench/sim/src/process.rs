//! Processes: what they have done, where they are, and how much a factor slows them down.

/// Place of a process in the world's list.
pub(crate) type ProcIx = usize;

/// Where it is: at one place, always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Not started yet: its node is being asked for.
    Unborn,
    At(usize),
    /// Frozen, on its way from a node, by a transfer.
    Between {
        from: usize,
    },
    Ended,
    /// Its node crashed.
    Lost,
}

#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) place: Place,
    pub(crate) home: usize,
    pub(crate) job: usize,
    pub(crate) born_s: f64,
    pub(crate) arrived_s: f64,
    pub(crate) work_s: f64,
    pub(crate) left_s: f64,
    pub(crate) memory_bytes: u64,
    pub(crate) dirty_bytes: u64,
    pub(crate) kappa: f64,
    pub(crate) needs: mosix_policy::Features,
    /// Another process and the cost of being apart from it.
    pub(crate) partner: Option<(ProcIx, f64)>,
    /// 1 + everything that slows it down where it is.
    pub(crate) drag: f64,
    pub(crate) lag_s: f64,
    pub(crate) restless: f64,
    pub(crate) moved_s: f64,
    pub(crate) moves: u32,
    pub(crate) in_flight: bool,
    pub(crate) pinned: bool,
    /// Of a background process: it sleeps.
    pub(crate) asleep: bool,
    /// Of a background process: which group.
    pub(crate) background: Option<usize>,
    /// The node's counters when this process was last settled.
    pub(crate) v_mark: f64,
    pub(crate) l_mark: f64,
}

impl Process {
    pub(crate) fn node(&self) -> Option<usize> {
        match self.place {
            Place::At(node) => Some(node),
            _ => None,
        }
    }

    /// CPU seconds of useful work done.
    pub(crate) fn done_s(&self) -> f64 {
        (self.work_s - self.left_s).max(0.0)
    }
}
