//! Which kernel fields the BPF programs read, once for both sides.
//!
//! The macro below makes the struct that is handed to the kernel and the list by which user space fills it, so that
//! the two cannot differ.

/// Value of an offset that the running kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// What is asked about a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Its offset in the outer struct, in bytes.
    Offset,
    /// It is an array: the size of one element, in bytes.
    Stride,
}

/// One value to look up in the kernel's BTF.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Name of the value in [`Offsets`].
    pub name: &'static str,
    /// What is asked.
    pub what: What,
    /// Name of the kernel struct.
    pub structure: &'static str,
    /// Dotted member paths, one for each layout that kernels have had; the first that exists counts.
    pub paths: &'static [&'static str],
    /// Without this one the program cannot work. An optional one that is missing becomes [`ABSENT`].
    pub required: bool,
}

macro_rules! offsets {
    ($($name:ident : $required:ident $what:ident $structure:literal $paths:expr, $doc:literal;)*) => {
        /// Where the running kernel keeps what the programs read, in bytes. Values may be [`ABSENT`].
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Offsets {
            $(#[doc = $doc] pub $name: u32,)*
        }

        impl Offsets {
            /// The values in the order of the struct, as the kernel side wants them.
            #[must_use]
            pub fn to_words(&self) -> [u32; size_of::<Self>() / 4] {
                [$(self.$name,)*]
            }

            /// Fills every value by asking `find` for it; the first error ends it.
            pub fn resolve<E>(mut find: impl FnMut(&Field) -> Result<u32, E>) -> Result<Self, E> {
                Ok(Self {
                    $($name: find(&Field {
                        name: stringify!($name),
                        what: What::$what,
                        structure: $structure,
                        paths: &$paths,
                        required: offsets!(@ $required),
                    })?,)*
                })
            }
        }
    };
    (@ required) => { true };
    (@ optional) => { false };
}

offsets! {
    task_pid: required Offset "task_struct" ["pid"], "Global thread id.";
    task_tgid: required Offset "task_struct" ["tgid"], "Global process id.";
    task_state: required Offset "task_struct" ["__state", "state"], "Scheduler state (renamed in 5.14).";
    task_exit_state: required Offset "task_struct" ["exit_state"], "Zombie or dead.";
    task_flags: required Offset "task_struct" ["flags"], "`PF_*`.";
    task_start_boottime: required Offset "task_struct" ["start_boottime", "real_start_time"], "Start time.";
    task_run: required Offset "task_struct" ["se.sum_exec_runtime"], "CPU time.";
    task_run_delay: optional Offset "task_struct" ["sched_info.run_delay"], "Run-queue wait (needs CONFIG_SCHED_INFO).";
    task_nvcsw: required Offset "task_struct" ["nvcsw"], "Voluntary switches.";
    task_nivcsw: required Offset "task_struct" ["nivcsw"], "Involuntary switches.";
    task_mm: required Offset "task_struct" ["mm"], "Address space; null for kernel threads and zombies.";
    task_signal: required Offset "task_struct" ["signal"], "What the threads of a process share.";
    task_real_cred: required Offset "task_struct" ["real_cred"], "Whose it is.";
    task_real_parent: required Offset "task_struct" ["real_parent"], "Parent.";
    task_group_leader: required Offset "task_struct" ["group_leader"], "First thread of the process.";
    task_thread_pid: required Offset "task_struct" ["thread_pid"], "Its `struct pid`.";
    task_comm: required Offset "task_struct" ["comm"], "Command name.";
    cred_uid: required Offset "cred" ["uid"], "Real user id.";
    signal_dead_run: required Offset "signal_struct" ["sum_sched_runtime"], "CPU time of dead threads.";
    signal_threads: required Offset "signal_struct" ["nr_threads"], "Number of threads.";
    signal_pids: required Offset "signal_struct" ["pids"], "`struct pid` of process, group and session.";
    signal_tty: required Offset "signal_struct" ["tty"], "Controlling terminal.";
    tty_driver: required Offset "tty_struct" ["driver"], "Driver of a terminal.";
    tty_index: required Offset "tty_struct" ["index"], "Number of a terminal with its driver.";
    tty_major: required Offset "tty_driver" ["major"], "Major device number.";
    tty_minor_start: required Offset "tty_driver" ["minor_start"], "First minor device number.";
    pid_level: required Offset "pid" ["level"], "Depth of the innermost pid namespace.";
    pid_numbers: required Offset "pid" ["numbers"], "One number for each pid namespace.";
    pid_numbers_stride: required Stride "pid" ["numbers"], "Size of such a number's entry.";
    upid_nr: required Offset "upid" ["nr"], "The number in an entry.";
    upid_ns: required Offset "upid" ["ns"], "The namespace of an entry.";
    mm_counters: required Offset "mm_struct" ["rss_stat.count"], "First memory counter.";
    mm_counters_stride: required Stride "mm_struct" ["rss_stat", "rss_stat.count"], "Distance of the counters (per-CPU counters since 6.2).";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolve_asks_for_every_value_in_order() {
        let mut next = 0;
        let offsets = Offsets::resolve(|_| {
            next += 1;
            Ok::<_, ()>(next)
        });
        assert_eq!(offsets.map(|o| (o.task_pid, o.mm_counters_stride)), Ok((1, next)));
        assert_eq!(core::mem::size_of::<Offsets>(), next as usize * 4);
        assert!(offsets.is_ok_and(|o| o.to_words().into_iter().eq(1..=next)));
    }

    #[test]
    fn resolve_stops_at_the_first_error() {
        let mut asked = 0;
        let result = Offsets::resolve(|field| {
            asked += 1;
            if field.name == "task_state" { Err(field.paths.len()) } else { Ok(0) }
        });
        assert_eq!((result, asked), (Err(2), 3));
    }
}
