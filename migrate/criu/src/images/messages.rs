//! The messages in image files, field numbers as in `images/*.proto` of CRIU 4.2.1.
//!
//! [`Inventory`], [`PagemapHead`], [`Pagemap`], [`Mm`], [`Timens`] and [`PstreeItem`] are complete: what is read is written back without loss.
//! [`Core`] and [`File`] have only what we look at, and must not be written.

/// Kernel objects that tasks share.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct KobjIds {
    /// Memory.
    #[prost(uint32, required, tag = "1")]
    pub vm_id: u32,
    /// Descriptor table.
    #[prost(uint32, required, tag = "2")]
    pub files_id: u32,
    /// Root and working folder.
    #[prost(uint32, required, tag = "3")]
    pub fs_id: u32,
    /// Signal handlers.
    #[prost(uint32, required, tag = "4")]
    pub sighand_id: u32,
    /// Namespace.
    #[prost(uint32, optional, tag = "5")]
    pub pid_ns_id: Option<u32>,
    /// Namespace.
    #[prost(uint32, optional, tag = "6")]
    pub net_ns_id: Option<u32>,
    /// Namespace.
    #[prost(uint32, optional, tag = "7")]
    pub ipc_ns_id: Option<u32>,
    /// Namespace.
    #[prost(uint32, optional, tag = "8")]
    pub uts_ns_id: Option<u32>,
    /// Namespace.
    #[prost(uint32, optional, tag = "9")]
    pub mnt_ns_id: Option<u32>,
    /// Namespace.
    #[prost(uint32, optional, tag = "10")]
    pub user_ns_id: Option<u32>,
    /// Namespace.
    #[prost(uint32, optional, tag = "11")]
    pub cgroup_ns_id: Option<u32>,
    /// Namespace.
    #[prost(uint32, optional, tag = "12")]
    pub time_ns_id: Option<u32>,
}

/// Plugins that the dump used.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Plugins {
    /// Names.
    #[prost(string, repeated, tag = "12")]
    pub plugins: Vec<String>,
}

/// `inventory.img`: about the whole dump.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Inventory {
    /// Version of the format.
    #[prost(uint32, required, tag = "1")]
    pub img_version: u32,
    /// Descriptor tables are numbered.
    #[prost(bool, optional, tag = "2")]
    pub fdinfo_per_id: Option<bool>,
    /// CRIU's own objects.
    #[prost(message, optional, tag = "3")]
    pub root_ids: Option<KobjIds>,
    /// Namespaces are numbered.
    #[prost(bool, optional, tag = "4")]
    pub ns_per_id: Option<bool>,
    /// CRIU's control groups.
    #[prost(uint32, optional, tag = "5")]
    pub root_cg_set: Option<u32>,
    /// Security module.
    #[prost(int32, optional, tag = "6")]
    pub lsmtype: Option<i32>,
    /// Microseconds since boot.
    #[prost(uint64, optional, tag = "8")]
    pub dump_uptime: Option<u64>,
    /// How a pre-dump read memory.
    #[prost(uint32, optional, tag = "9")]
    pub pre_dump_mode: Option<u32>,
    /// Connections are closed on restore.
    #[prost(bool, optional, tag = "10")]
    pub tcp_close: Option<bool>,
    /// How the network was blocked.
    #[prost(uint32, optional, tag = "11")]
    pub network_lock_method: Option<u32>,
    /// Plugins.
    #[prost(message, optional, tag = "12")]
    pub plugins_entry: Option<Plugins>,
    /// Mark of the run.
    #[prost(string, optional, tag = "13")]
    pub dump_criu_run_id: Option<String>,
    /// Probes were allowed.
    #[prost(bool, optional, tag = "14")]
    pub allow_uprobes: Option<bool>,
}

/// First record of a page map.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct PagemapHead {
    /// Number of the pages file.
    #[prost(uint32, required, tag = "1")]
    pub pages_id: u32,
}

/// A run of pages.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Pagemap {
    /// First address.
    #[prost(uint64, required, tag = "1")]
    pub vaddr: u64,
    /// Number of pages for old readers.
    #[prost(uint32, required, tag = "2")]
    pub compat_nr_pages: u32,
    /// Old form of the parent flag.
    #[prost(bool, optional, tag = "3")]
    pub in_parent: Option<bool>,
    /// See [`super::pagemap`].
    #[prost(uint32, optional, tag = "4")]
    pub flags: Option<u32>,
    /// Number of pages.
    #[prost(uint64, optional, tag = "5")]
    pub nr_pages: Option<u64>,
}

/// A mapping.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Vma {
    /// First address.
    #[prost(uint64, required, tag = "1")]
    pub start: u64,
    /// First address after it.
    #[prost(uint64, required, tag = "2")]
    pub end: u64,
    /// Offset in the file in bytes.
    #[prost(uint64, required, tag = "3")]
    pub pgoff: u64,
    /// Id of the file or shared memory.
    #[prost(uint64, required, tag = "4")]
    pub shmid: u64,
    /// Access rights, as for mmap(2).
    #[prost(uint32, required, tag = "5")]
    pub prot: u32,
    /// As for mmap(2).
    #[prost(uint32, required, tag = "6")]
    pub flags: u32,
    /// Kind; see [`super::verify`].
    #[prost(uint32, required, tag = "7")]
    pub status: u32,
    /// Not used.
    #[prost(sint64, required, tag = "8")]
    pub fd: i64,
    /// madvise(2) bits.
    #[prost(uint64, optional, tag = "9")]
    pub madv: Option<u64>,
    /// Open flags of the file.
    #[prost(uint32, optional, tag = "10")]
    pub fdflags: Option<u32>,
}

/// A ring of asynchronous I/O.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct AioRing {
    /// Address.
    #[prost(uint64, required, tag = "1")]
    pub id: u64,
    /// Requests.
    #[prost(uint32, required, tag = "2")]
    pub nr_req: u32,
    /// Bytes.
    #[prost(uint32, required, tag = "3")]
    pub ring_len: u32,
}

/// `mm-PID.img`: the mappings of a process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mm {
    /// Code.
    #[prost(uint64, required, tag = "1")]
    pub mm_start_code: u64,
    /// Code.
    #[prost(uint64, required, tag = "2")]
    pub mm_end_code: u64,
    /// Data.
    #[prost(uint64, required, tag = "3")]
    pub mm_start_data: u64,
    /// Data.
    #[prost(uint64, required, tag = "4")]
    pub mm_end_data: u64,
    /// Stack.
    #[prost(uint64, required, tag = "5")]
    pub mm_start_stack: u64,
    /// Heap.
    #[prost(uint64, required, tag = "6")]
    pub mm_start_brk: u64,
    /// Heap.
    #[prost(uint64, required, tag = "7")]
    pub mm_brk: u64,
    /// Arguments.
    #[prost(uint64, required, tag = "8")]
    pub mm_arg_start: u64,
    /// Arguments.
    #[prost(uint64, required, tag = "9")]
    pub mm_arg_end: u64,
    /// Environment.
    #[prost(uint64, required, tag = "10")]
    pub mm_env_start: u64,
    /// Environment.
    #[prost(uint64, required, tag = "11")]
    pub mm_env_end: u64,
    /// The program.
    #[prost(uint32, required, tag = "12")]
    pub exe_file_id: u32,
    /// Auxiliary vector.
    #[prost(uint64, repeated, tag = "13", packed = "false")]
    pub mm_saved_auxv: Vec<u64>,
    /// Mappings in order, then guard ranges.
    #[prost(message, repeated, tag = "14")]
    pub vmas: Vec<Vma>,
    /// prctl(2) value.
    #[prost(int32, optional, tag = "15")]
    pub dumpable: Option<i32>,
    /// Rings.
    #[prost(message, repeated, tag = "16")]
    pub aios: Vec<AioRing>,
    /// No huge pages.
    #[prost(bool, optional, tag = "17")]
    pub thp_disabled: Option<bool>,
}

/// A time.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Timespec {
    /// Seconds.
    #[prost(uint64, required, tag = "1")]
    pub tv_sec: u64,
    /// Nanoseconds.
    #[prost(uint64, required, tag = "2")]
    pub tv_nsec: u64,
}

/// `timens-ID.img`: clocks of the dump.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Timens {
    /// CLOCK_MONOTONIC.
    #[prost(message, required, tag = "1")]
    pub monotonic: Timespec,
    /// CLOCK_BOOTTIME.
    #[prost(message, required, tag = "2")]
    pub boottime: Timespec,
}

/// A process of `pstree.img`; the first is the root.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PstreeItem {
    /// Number.
    #[prost(uint32, required, tag = "1")]
    pub pid: u32,
    /// Parent.
    #[prost(uint32, required, tag = "2")]
    pub ppid: u32,
    /// Group.
    #[prost(uint32, required, tag = "3")]
    pub pgid: u32,
    /// Session.
    #[prost(uint32, required, tag = "4")]
    pub sid: u32,
    /// Numbers of its threads.
    #[prost(uint32, repeated, tag = "5", packed = "false")]
    pub threads: Vec<u32>,
}

/// What [`Core`] tells of a process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskCore {
    /// 1 alive, 2 dead, 3 stopped, 6 zombie.
    #[prost(uint32, required, tag = "1")]
    pub task_state: u32,
    /// Of a zombie.
    #[prost(uint32, required, tag = "2")]
    pub exit_code: u32,
    /// Name.
    #[prost(string, required, tag = "6")]
    pub comm: String,
}

/// `core-TID.img`, in part.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Core {
    /// Of the process; only in its main thread.
    #[prost(message, optional, tag = "3")]
    pub tc: Option<TaskCore>,
    /// Shared objects.
    #[prost(message, optional, tag = "4")]
    pub ids: Option<KobjIds>,
}

/// A regular file of [`File`], in part.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegFile {
    /// Id.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Open flags.
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    /// Position.
    #[prost(uint64, required, tag = "3")]
    pub pos: u64,
    /// Path without the first slash.
    #[prost(string, required, tag = "6")]
    pub name: String,
    /// Bytes; a restore compares.
    #[prost(uint64, optional, tag = "8")]
    pub size: Option<u64>,
    /// Mode.
    #[prost(uint32, optional, tag = "10")]
    pub mode: Option<u32>,
}

/// An end of a pipe of [`File`], in part.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Pipe {
    /// Id.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Inode of the pipe.
    #[prost(uint32, required, tag = "2")]
    pub pipe_id: u32,
    /// Open flags.
    #[prost(uint32, required, tag = "3")]
    pub flags: u32,
}

/// An open file of `files.img`, in part.
#[derive(Clone, PartialEq, prost::Message)]
pub struct File {
    /// 1 regular, 2 pipe, ...
    #[prost(int32, required, tag = "1")]
    pub kind: i32,
    /// Id.
    #[prost(uint32, required, tag = "2")]
    pub id: u32,
    /// If regular.
    #[prost(message, optional, tag = "3")]
    pub reg: Option<RegFile>,
    /// If a pipe.
    #[prost(message, optional, tag = "18")]
    pub pipe: Option<Pipe>,
}
