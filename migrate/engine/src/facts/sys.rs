//! The two system calls that no safe wrapper offers: `kcmp` and `getxattr` of a socket's protocol name.

use std::ffi::CString;

use nix::errno::Errno;

/// What `kcmp` compares, with the kernel's own numbers (`include/uapi/linux/kcmp.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kcmp {
    /// Two descriptors: the same open file description?
    File = 0,
    /// The same address space?
    Vm = 1,
    /// The same descriptor table?
    Files = 2,
    /// The same root, working directory and umask?
    Fs = 3,
}

/// True if both tasks share the object. `ours` and `theirs` are descriptor numbers for [`Kcmp::File`], else ignored.
pub(super) fn kcmp(pid: i32, other: i32, what: Kcmp, ours: i32, theirs: i32) -> Result<bool, Errno> {
    // SAFETY: kcmp takes five integers, dereferences none of them and changes nothing.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            libc::c_long::from(pid),
            libc::c_long::from(other),
            what as libc::c_long,
            libc::c_long::from(ours),
            libc::c_long::from(theirs),
        )
    };
    // 1, 2 and 3 are orderings of different objects.
    Errno::result(answer).map(|order| order == 0)
}

/// The protocol of the socket behind a `/proc/PID/fd/N` path, as the kernel names it (`TCP`, `UNIX-STREAM`, `NETLINK`).
pub(super) fn socket_protocol(path: &str) -> Option<String> {
    let path = CString::new(path).ok()?;
    let mut name = [0u8; 64];
    // SAFETY: both strings are terminated, and the kernel writes at most `name.len()` bytes into `name`.
    let length = unsafe { libc::getxattr(path.as_ptr(), c"system.sockprotoname".as_ptr(), name.as_mut_ptr().cast(), name.len()) };
    let length = usize::try_from(length).ok()?.min(name.len());
    let text = String::from_utf8_lossy(&name[..length]);
    Some(text.trim_end_matches('\0').to_owned())
}
