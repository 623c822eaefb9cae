//! Starting a program in a node: what happens between the holder's fork and the exec.
//!
//! The holder never waits for the exec: on a throttled node the exec itself may take long. If it fails, the child says so
//! on its own stderr and ends with 127 (not found) or 126, as a shell does.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::SigSet;
use nix::unistd::{self, ForkResult, Gid, Pid, Uid, User};

use crate::proto::{ExecRequest, RunAs};
use crate::sys;

/// Where programs are looked up if the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// All that the child needs, prepared before the fork.
#[derive(Debug)]
pub(crate) struct Plan {
    program: CString,
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd: PathBuf,
    run_as: Option<RunAs>,
    groups: Vec<PathBuf>,
    cpu: usize,
    stdio: [OwnedFd; 3],
}

impl Plan {
    /// Prepares `request`. `groups` are the files that move the writer into the wanted cgroups.
    pub(crate) fn new(
        request: &ExecRequest,
        extra_env: &[(String, String)],
        groups: &[PathBuf],
        cpu: usize,
        stdio: [OwnedFd; 3],
    ) -> Result<Self, String> {
        let name = request.argv.first().ok_or("no command was given")?;
        let path = request.env.iter().find(|(key, _)| key == "PATH").map(|(_, value)| value.clone());
        let text = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| "an argument contains a NUL byte".to_owned());
        let pair = |key: &[u8], value: &[u8]| text([key, b"=", value].concat());
        let mut env = Vec::new();
        for (key, value) in &request.env {
            if !extra_env.iter().any(|(extra, _)| key == extra.as_str()) {
                env.push(pair(key.as_bytes(), value.as_bytes())?);
            }
        }
        for (key, value) in extra_env {
            env.push(pair(key.as_bytes(), value.as_bytes())?);
        }
        Ok(Self {
            program: text(look_up(name.as_ref(), path).into_os_string().as_bytes().to_vec())?,
            argv: request.argv.iter().map(|arg| text(arg.as_bytes().to_vec())).collect::<Result<_, _>>()?,
            env,
            cwd: request.cwd.clone(),
            run_as: request.run_as,
            groups: groups.to_vec(),
            cpu,
            stdio,
        })
    }

    /// Starts it; returns its pid in the node.
    pub(crate) fn start(self) -> io::Result<Pid> {
        // The holder has a single thread, so the child may use everything.
        match sys::fork()? {
            ForkResult::Parent { child } => Ok(child),
            ForkResult::Child => {
                let Err((stage, error)) = self.become_program();
                eprintln!("mosix-lab: {stage} {}: {error}", self.program.to_string_lossy());
                std::process::exit(if error == Errno::ENOENT { 127 } else { 126 })
            }
        }
    }

    /// In the child: does everything up to the exec. Returns only on failure, with what was being done.
    fn become_program(&self) -> Result<std::convert::Infallible, (&'static str, Errno)> {
        let at = |stage: &'static str| move |error: Errno| (stage, error);
        let [stdin, stdout, stderr] = &self.stdio;
        unistd::dup2_stderr(stderr).map_err(at("setting the streams of"))?;
        unistd::dup2_stdin(stdin).map_err(at("setting the streams of"))?;
        unistd::dup2_stdout(stdout).map_err(at("setting the streams of"))?;
        // A group of its own, so that a signal reaches what it started but not the holder.
        unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(at("making a process group for"))?;
        for file in &self.groups {
            std::fs::write(file, "0").map_err(|error| ("putting in its cgroup", errno(&error)))?;
        }
        let mut cpus = CpuSet::new();
        cpus.set(self.cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpus)).map_err(at("pinning"))?;
        std::env::set_current_dir(&self.cwd).map_err(|error| ("entering the folder of", errno(&error)))?;
        SigSet::empty().thread_set_mask().map_err(at("resetting the signals of"))?;
        sys::default_sigpipe().map_err(at("resetting the signals of"))?;
        if let Some(run_as) = self.run_as {
            drop_to(run_as).map_err(at("changing the user of"))?;
        }
        unistd::execve(&self.program, &self.argv, &self.env).map_err(at("running"))
    }
}

/// Becomes an ordinary user, with the groups that the user database knows.
fn drop_to(run_as: RunAs) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(run_as.uid), Gid::from_raw(run_as.gid));
    match User::from_uid(uid).ok().flatten().and_then(|user| CString::new(user.name).ok()) {
        Some(name) => unistd::initgroups(&name, gid)?,
        None => unistd::setgroups(&[gid])?,
    }
    unistd::setgid(gid)?;
    unistd::setuid(uid)
}

/// The errno inside an I/O error.
fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// Finds a program as `execvp` does; an unknown one is left as it is, for the exec to fail with the right error.
fn look_up(name: &Path, path: Option<OsString>) -> PathBuf {
    if name.as_os_str().as_bytes().contains(&b'/') {
        return name.into();
    }
    let path = path.unwrap_or_else(|| DEFAULT_PATH.into());
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|full| full.is_file()).unwrap_or_else(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_the_given_path_only() {
        assert_eq!(look_up(Path::new("./x"), Some("/bin".into())), Path::new("./x"));
        assert_eq!(look_up(Path::new("sh"), Some("/nowhere:/bin".into())), Path::new("/bin/sh"));
        assert_eq!(look_up(Path::new("sh"), Some("/nowhere".into())), Path::new("sh"));
        assert!(look_up(Path::new("sh"), None).is_absolute());
    }
}
