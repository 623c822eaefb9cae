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
    /// A notification or the answer to one.
    Notify = 6,
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
    /// Session leader outside of the tree.
    #[prost(bool, optional, tag = "7")]
    pub shell_job: Option<bool>,
    /// 1 errors .. 4 debug.
    #[prost(int32, optional, tag = "9")]
    pub log_level: Option<i32>,
    /// File name in the image folder.
    #[prost(string, optional, tag = "10")]
    pub log_file: Option<String>,
    /// Send notifications.
    #[prost(bool, optional, tag = "12")]
    pub notify_scripts: Option<bool>,
    /// The restored root becomes a sibling of the worker.
    #[prost(bool, optional, tag = "26")]
    pub rst_sibling: Option<bool>,
    /// See [`InheritFd`].
    #[prost(message, repeated, tag = "27")]
    pub inherit_fd: Vec<InheritFd>,
    /// See [`CriuCgMode`].
    #[prost(enumeration = "CriuCgMode", optional, tag = "34")]
    pub manage_cgroups_mode: Option<i32>,
    /// External resources.
    #[prost(string, repeated, tag = "37")]
    pub external: Vec<String>,
    /// Seconds that CRIU gives itself to stop the tree.
    #[prost(uint32, optional, tag = "45")]
    pub timeout: Option<u32>,
    /// See [`CriuNetworkLockMethod`].
    #[prost(enumeration = "CriuNetworkLockMethod", optional, tag = "64")]
    pub network_lock: Option<i32>,
    /// Do not compare file modes on restore.
    #[prost(bool, optional, tag = "66")]
    pub skip_file_rwx_check: Option<bool>,
    /// Image folder, used if `images_dir_fd` is -1.
    #[prost(string, optional, tag = "68")]
    pub images_dir: Option<String>,
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
    /// errno of the failure.
    #[prost(int32, optional, tag = "7")]
    pub cr_errno: Option<i32>,
    /// First error of the log (often a harmless one).
    #[prost(string, optional, tag = "9")]
    pub cr_errmsg: Option<String>,
}
