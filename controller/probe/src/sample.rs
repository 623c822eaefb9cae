//! What a probe tells.

use mosix_ebpf::{COMM_LEN, STATE_WAKING};
use std::{fmt, ops::Deref};

/// The processes of this node and what they did in the last period.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Time since the sample before, in seconds; 0 for the first.
    pub period_s: f64,
    /// Average number of threads that wanted a CPU in the period: the sum of all `demand`.
    pub load: f64,
    /// Every process that the reader's pid namespace shows, in no order.
    pub processes: Vec<ProcessSample>,
    /// Memory of the machine.
    pub memory_total_bytes: u64,
    /// What of it could be had without swapping (the kernel's `MemAvailable`).
    pub memory_available_bytes: u64,
    /// CPUs that are online.
    pub cpus: u32,
}

/// One process (thread group). `(pid, start_time_ns)` names it for ever, within one backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessSample {
    /// Pid as seen from the reader's pid namespace.
    pub pid: u32,
    /// Parent's pid; 0 if the parent is outside the reader's pid namespace.
    pub ppid: u32,
    /// Pid in the innermost pid namespace of the process.
    pub inner_pid: u32,
    /// It lives in a pid namespace below the reader's.
    pub nested: bool,
    /// Process group; 0 if its number is outside the reader's pid namespace.
    pub pgid: u32,
    /// Session; 0 if its number is outside the reader's pid namespace.
    pub sid: u32,
    /// Controlling terminal as `major << 20 | minor`, 0 if none.
    pub tty: u32,
    /// Start in ns since boot, suspended time included. `/proc` rounds it to a clock tick.
    pub start_time_ns: u64,
    /// Real user id.
    pub uid: u32,
    /// Command name.
    pub comm: Comm,
    /// What its leader does.
    pub state: State,
    /// It is a kernel thread.
    pub kernel_thread: bool,
    /// Number of threads.
    pub threads: u32,
    /// CPU time since it started, with threads that have ended, in ns. Never decreases.
    pub cpu_ns: u64,
    /// Time its threads have waited for a CPU, in ns. Threads that have ended count up to the last sample that saw them.
    pub wait_ns: u64,
    /// CPUs it used on average in the period: 0 to the number of CPUs.
    pub cpu_rate: f64,
    /// Threads of it that wanted a CPU, on average over the period (over its life when seen for the first time).
    pub demand: f64,
    /// Resident memory, in bytes. Behind by up to some dozen pages per CPU with BPF.
    pub rss_bytes: u64,
    /// Memory swapped out, in bytes; 0 where the backend cannot tell (`/proc`).
    pub swap_bytes: u64,
}

/// What a process does, as `ps` shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Runs or waits for a CPU (R).
    #[default]
    Running,
    /// Waits for something (S).
    Sleeping,
    /// Waits for a device, not to be interrupted (D).
    DiskSleep,
    /// Stopped by job control (T).
    Stopped,
    /// Stopped by a tracer (t).
    Traced,
    /// Ended and not yet waited for (Z).
    Zombie,
    /// Vanishing (X).
    Dead,
    /// A kernel thread that is parked (P) or idle (I).
    Idle,
}

impl State {
    /// From the kernel's `__state` and `exit_state` bits.
    pub(crate) fn from_bits(state: u32, exit_state: u32) -> Self {
        match (state & !STATE_WAKING) | exit_state {
            0 => Self::Running,
            bits if bits & 0x10 != 0 => Self::Dead,
            bits if bits & 0x20 != 0 => Self::Zombie,
            // TASK_IDLE (uninterruptible, but not load) and TASK_PARKED.
            bits if bits & 0x402 == 0x402 || bits & 0x40 != 0 => Self::Idle,
            bits if bits & 0x8 != 0 => Self::Traced,
            bits if bits & 0x4 != 0 => Self::Stopped,
            // Uninterruptible, waiting for a lock of a real-time kernel, or frozen.
            bits if bits & 0x9002 != 0 => Self::DiskSleep,
            _ => Self::Sleeping,
        }
    }

    /// The bits that stand for a letter of `/proc/PID/stat`: `(state, exit_state)`.
    pub(crate) fn bits_of(letter: u8) -> (u32, u32) {
        match letter {
            b'R' => (0, 0),
            b'D' => (0x2, 0),
            b'T' => (0x4, 0),
            b't' => (0x8, 0),
            b'X' | b'x' => (0, 0x10),
            b'Z' => (0, 0x20),
            b'P' => (0x40, 0),
            b'I' => (0x402, 0),
            _ => (0x1, 0),
        }
    }

    /// The letter that `ps` uses.
    #[must_use]
    pub const fn letter(self) -> char {
        match self {
            Self::Running => 'R',
            Self::Sleeping => 'S',
            Self::DiskSleep => 'D',
            Self::Stopped => 'T',
            Self::Traced => 't',
            Self::Zombie => 'Z',
            Self::Dead => 'X',
            Self::Idle => 'I',
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.letter())
    }
}

/// A command name: up to 15 bytes, without an allocation (there is one for every process, in every sample).
///
/// Behaves as a `str`. Bytes that are not UTF-8 (a process can call itself anything) end it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Comm([u8; COMM_LEN]);

impl Comm {
    /// From the kernel's zero-terminated form.
    #[must_use]
    pub const fn new(bytes: [u8; COMM_LEN]) -> Self {
        Self(bytes)
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(COMM_LEN);
        match std::str::from_utf8(&self.0[..end]) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&self.0[..error.valid_up_to()]).unwrap_or_default(),
        }
    }
}

impl From<&str> for Comm {
    /// Cuts after 15 bytes, as the kernel does.
    fn from(text: &str) -> Self {
        let mut bytes = [0; COMM_LEN];
        let length = text.len().min(COMM_LEN - 1);
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        Self(bytes)
    }
}

impl Deref for Comm {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq<str> for Comm {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Comm {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl fmt::Display for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_survive_the_way_through_the_bits() {
        for letter in "RSDTtZXI".chars() {
            let (state, exit_state) = State::bits_of(letter as u8);
            assert_eq!(State::from_bits(state, exit_state).letter(), letter);
        }
    }

    #[test]
    fn a_freshly_woken_sleeper_is_not_idle() {
        assert_eq!(State::from_bits(0x2, 0), State::DiskSleep);
        assert_eq!(State::from_bits(0x1 | 0x100, 0), State::Sleeping);
        assert_eq!(State::from_bits(0x1, 0x20), State::Zombie);
    }

    #[test]
    fn comm_takes_anything() {
        assert_eq!(Comm::from("a name longer than fifteen"), "a name longer t");
        let mut bytes = [0xff; COMM_LEN];
        assert_eq!(Comm::new(bytes), "");
        bytes[..3].copy_from_slice(b"ok\0");
        assert_eq!(Comm::new(bytes), "ok");
        assert_eq!(Comm::from("ééééééééé").as_str(), "ééééééé");
    }
}
