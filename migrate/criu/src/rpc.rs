//! The part of CRIU's `rpc.proto` (proto2) that we use, field numbers as in CRIU 4.2.1.
//! Unknown fields of a newer CRIU are skipped by the decoder.

/// What a request or response is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum CriuReqType {
    /// No content.
    Empty = 0,
    /// Checkpoint a tree.
    Dump = 1,
    /// Restore a tree.
    Restore = 2,
    /// Check the kernel.
    Check = 3,
    /// Checkpoint memory only; the tree runs on.
    SinglePreDump = 13,
    /// Receive pages, in a process that serves one dump.
    PageServer = 5,
    /// A notification or the answer to one.
    Notify = 6,
    /// Ask what CRIU and the kernel can do.
    FeatureCheck = 9,
    /// Ask for the version.
    Version = 10,
}

/// How CRIU treats control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum CriuCgMode {
    /// Neither dumped nor restored.
    Ignore = 0,
}

/// How CRIU blocks the network during a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum CriuNetworkLockMethod {
    /// iptables rules.
    Iptables = 1,
    /// nftables rules.
    Nftables = 2,
    /// Not at all: the caller sees to it.
    Skip = 3,
}

/// A descriptor of ours in the place of a dumped one.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InheritFd {
    /// E.g. `pipe:[123]`.
    #[prost(string, required, tag = "1")]
    pub key: String,
    /// Number in the worker process.
    #[prost(int32, required, tag = "2")]
    pub fd: i32,
}

/// Where a page server listens, or listens now.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CriuPageServerInfo {
    /// Address.
    #[prost(string, optional, tag = "1")]
    pub address: Option<String>,
    /// Port.
    #[prost(int32, optional, tag = "2")]
    pub port: Option<i32>,
    /// Pid of the server.
    #[prost(int32, optional, tag = "3")]
    pub pid: Option<i32>,
}

/// What to look for in a feature check, and what was found.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct CriuFeatures {
    /// Soft-dirty page tracking.
    #[prost(bool, optional, tag = "1")]
    pub mem_track: Option<bool>,
    /// userfaultfd as lazy pages need it.
    #[prost(bool, optional, tag = "2")]
    pub lazy_pages: Option<bool>,
    /// Pidfds.
    #[prost(bool, optional, tag = "3")]
    pub pidfd_store: Option<bool>,
}

/// A release.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CriuVersion {
    /// First number.
    #[prost(int32, required, tag = "1")]
    pub major_number: i32,
    /// Second number.
    #[prost(int32, required, tag = "2")]
    pub minor_number: i32,
    /// Third number.
    #[prost(int32, optional, tag = "4")]
    pub sublevel: Option<i32>,
}

/// Options of a request.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CriuOpts {
    /// Descriptor of the image folder, or -1.
    #[prost(int32, required, tag = "1", default = "-1")]
    pub images_dir_fd: i32,
    /// Root of the tree to dump.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
    /// Leave the tree running after the dump.
    #[prost(bool, optional, tag = "3")]
    pub leave_running: Option<bool>,
    /// Established TCP connections.
    #[prost(bool, optional, tag = "5")]
    pub tcp_established: Option<bool>,
    /// Session leader outside of the tree.
    #[prost(bool, optional, tag = "7")]
    pub shell_job: Option<bool>,
    /// 1 errors .. 4 debug.
    #[prost(int32, optional, tag = "9")]
    pub log_level: Option<i32>,
    /// File name in the image folder.
    #[prost(string, optional, tag = "10")]
    pub log_file: Option<String>,
    /// File locks held inside the tree.
    #[prost(bool, optional, tag = "8")]
    pub file_locks: Option<bool>,
    /// Where to send pages, or to listen for them.
    #[prost(message, optional, tag = "11")]
    pub ps: Option<CriuPageServerInfo>,
    /// Send notifications.
    #[prost(bool, optional, tag = "12")]
    pub notify_scripts: Option<bool>,
    /// Folder of the parent images, relative to the image folder.
    #[prost(string, optional, tag = "14")]
    pub parent_img: Option<String>,
    /// Pages that did not change since the parent images are left out.
    #[prost(bool, optional, tag = "15")]
    pub track_mem: Option<bool>,
    /// The restored root becomes a sibling of the worker.
    #[prost(bool, optional, tag = "26")]
    pub rst_sibling: Option<bool>,
    /// See [`InheritFd`].
    #[prost(message, repeated, tag = "27")]
    pub inherit_fd: Vec<InheritFd>,
    /// See [`CriuCgMode`].
    #[prost(enumeration = "CriuCgMode", optional, tag = "34")]
    pub manage_cgroups_mode: Option<i32>,
    /// Largest deleted file that is carried along, in bytes.
    #[prost(uint32, optional, tag = "35")]
    pub ghost_limit: Option<u32>,
    /// External resources.
    #[prost(string, repeated, tag = "37")]
    pub external: Vec<String>,
    /// Seconds that CRIU gives itself to stop the tree.
    #[prost(uint32, optional, tag = "45")]
    pub timeout: Option<u32>,
    /// Leave pages to a server of ours that listens in the image folder.
    #[prost(bool, optional, tag = "48")]
    pub lazy_pages: Option<bool>,
    /// See [`CriuNetworkLockMethod`].
    #[prost(enumeration = "CriuNetworkLockMethod", optional, tag = "64")]
    pub network_lock: Option<i32>,
    /// Do not compare file modes on restore.
    #[prost(bool, optional, tag = "66")]
    pub skip_file_rwx_check: Option<bool>,
    /// Image folder, used if `images_dir_fd` is -1.
    #[prost(string, optional, tag = "68")]
    pub images_dir: Option<String>,
    /// As for other users than root: among other things, the cache of kernel features lies in `$XDG_RUNTIME_DIR`.
    #[prost(bool, optional, tag = "67")]
    pub unprivileged: Option<bool>,
}

/// From the client.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CriuReq {
    /// What is asked.
    #[prost(enumeration = "CriuReqType", required, tag = "1")]
    pub r#type: i32,
    /// Its options.
    #[prost(message, optional, tag = "2")]
    pub opts: Option<CriuOpts>,
    /// Answer to a notification.
    #[prost(bool, optional, tag = "3")]
    pub notify_success: Option<bool>,
    /// For a feature check.
    #[prost(message, optional, tag = "5")]
    pub features: Option<CriuFeatures>,
}

/// Result of a restore.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct CriuRestoreResp {
    /// Pid of the root in the worker's namespace.
    #[prost(int32, required, tag = "1")]
    pub pid: i32,
}

/// CRIU is at a stage and waits.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CriuNotify {
    /// Name of the stage.
    #[prost(string, optional, tag = "1")]
    pub script: Option<String>,
    /// Pid of the root where it is known.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
}

/// From CRIU.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CriuResp {
    /// Of the request, or `Notify`.
    #[prost(enumeration = "CriuReqType", required, tag = "1")]
    pub r#type: i32,
    /// Whether it was done.
    #[prost(bool, required, tag = "2")]
    pub success: bool,
    /// Of a restore.
    #[prost(message, optional, tag = "4")]
    pub restore: Option<CriuRestoreResp>,
    /// Of a notification.
    #[prost(message, optional, tag = "5")]
    pub notify: Option<CriuNotify>,
    /// Of a page server.
    #[prost(message, optional, tag = "6")]
    pub ps: Option<CriuPageServerInfo>,
    /// errno of the failure.
    #[prost(int32, optional, tag = "7")]
    pub cr_errno: Option<i32>,
    /// First error of the log (often a harmless one).
    #[prost(string, optional, tag = "9")]
    pub cr_errmsg: Option<String>,
    /// Of a feature check.
    #[prost(message, optional, tag = "8")]
    pub features: Option<CriuFeatures>,
    /// Of a version request.
    #[prost(message, optional, tag = "10")]
    pub version: Option<CriuVersion>,
}
