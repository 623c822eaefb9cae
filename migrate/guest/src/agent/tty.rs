//! The guest's terminal: a pseudo-terminal whose slave is the guest's controlling terminal and whose master is relayed to home.
//!
//! Home's real terminal does all the cooking (echo, line editing, newline translation, signals from keys); the slave passes bytes as they are. If
//! home's terminal hands out lines, the slave does so too, with only the end-of-file character left, so that home's ^D arrives as one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};
use mosix_guest::TtySpec;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices as Index, Termios, tcgetattr, tcsetattr};

use super::sys;

/// Written to the slave's line discipline to mean end of file.
pub(crate) const END_OF_FILE: u8 = 4;

/// A terminal pair; the slave stays open here so that the master never reports a hang-up.
pub(crate) struct Terminal {
    pub(crate) spec: TtySpec,
    pub(crate) master: PtyMaster,
    pub(crate) slave: File,
}

impl Terminal {
    pub(crate) fn open(spec: TtySpec) -> Result<Self> {
        use nix::fcntl::OFlag;
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
            .context("cannot open a pseudo-terminal")?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = ptsname_r(&master)?;
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(&path)
            .with_context(|| format!("cannot open {path}"))?;
        let terminal = Self { spec, master, slave };
        terminal.resize(terminal.spec.size).context("window size")?;
        Ok(terminal)
    }

    pub(crate) fn resize(&self, size: (u16, u16)) -> io::Result<()> {
        sys::set_window_size(self.slave.as_fd(), size)
    }

    /// The guest has not read yet what it was given. Asking by poll(2) also makes the kernel pass on what was just written to
    /// the master, which else happens a little later: a reader that still seems to sleep would be given more than it wants.
    pub(crate) fn has_unread(&self) -> bool {
        let mut fds = [PollFd::new(self.slave.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    /// A descriptor of the slave for CRIU.
    pub(crate) fn slave_for_restore(&self) -> io::Result<OwnedFd> {
        self.slave.as_fd().try_clone_to_owned()
    }

    /// CRIU has put home's settings onto the slave; home cooks already, so here nothing may.
    pub(crate) fn stop_cooking(&self) -> Result<()> {
        let mut settings = tcgetattr(&self.slave)?;
        pass_through(&mut settings, self.spec.canonical);
        tcsetattr(&self.slave, SetArg::TCSANOW, &settings)?;
        Ok(())
    }
}

fn pass_through(settings: &mut Termios, canonical: bool) {
    settings.input_flags &= !(InputFlags::ICRNL
        | InputFlags::INLCR
        | InputFlags::IGNCR
        | InputFlags::IXON
        | InputFlags::IXOFF
        | InputFlags::ISTRIP
        | InputFlags::BRKINT
        | InputFlags::PARMRK
        | InputFlags::INPCK);
    settings.output_flags &= !OutputFlags::OPOST;
    settings.local_flags &= !(LocalFlags::ECHO
        | LocalFlags::ECHOE
        | LocalFlags::ECHOK
        | LocalFlags::ECHONL
        | LocalFlags::ECHOCTL
        | LocalFlags::ISIG
        | LocalFlags::IEXTEN
        | LocalFlags::TOSTOP);
    settings.local_flags.set(LocalFlags::ICANON, canonical);
    if canonical {
        settings.control_chars.fill(0);
        settings.control_chars[Index::VEOF as usize] = END_OF_FILE;
    } else {
        settings.control_chars[Index::VMIN as usize] = 1;
        settings.control_chars[Index::VTIME as usize] = 0;
    }
}
