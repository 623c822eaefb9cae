//! Home's ends of a process's pipes and terminal: what the guest writes is written here, what it wants to read is read here.
//!
//! Pipes and terminals are opened anew through `/proc/PID/fd`: the same pipe under a description of our own, so that non-blocking mode is ours alone.
//! A file whose offset others share must be written through the very same description, which `pidfd_getfd` gives.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use mosix_engine::eligible::{ChannelKind, Plan};
use nix::sys::termios::{LocalFlags, tcgetattr};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::deputy::Event;
use crate::sys;

/// Number of the terminal's channel; pipes count from 0.
pub(crate) const TERMINAL: u16 = u16::MAX;
/// How often a background job's terminal is looked at again while it has input.
const FOREGROUND_CHECK: Duration = Duration::from_millis(100);
/// Chunks waiting to be written; the guest's credit bounds them.
const QUEUE: usize = 64;

enum Output {
    /// A pipe or terminal, in non-blocking mode.
    Stream(Rc<AsyncFd<File>>),
    /// A file of others.
    File(Rc<File>),
}

/// All channels of one process.
pub(crate) struct Stdio {
    outputs: BTreeMap<u16, mpsc::Sender<Vec<u8>>>,
    inputs: BTreeMap<u16, Rc<AsyncFd<File>>>,
    terminal: Option<Rc<AsyncFd<File>>>,
    pid: i32,
    events: mpsc::Sender<Event>,
    /// Bytes handed over and not yet written, by channel.
    unwritten: BTreeMap<u16, usize>,
    watched: Vec<tokio::task::JoinHandle<()>>,
}

/// What reading an input gave.
pub(crate) enum Input {
    Bytes(Vec<u8>),
    /// Nobody will write any more.
    End,
    /// Someone else was faster, or the terminal is another job's now.
    Nothing,
}

impl Stdio {
    /// Takes hold of everything while the process is still whole.
    pub(crate) fn open(plan: &Plan, events: mpsc::Sender<Event>) -> Result<Self> {
        let mut stdio = Self {
            outputs: BTreeMap::new(),
            inputs: BTreeMap::new(),
            terminal: None,
            pid: plan.pid,
            events,
            unwritten: BTreeMap::new(),
            watched: Vec::new(),
        };
        for channel in &plan.channels {
            let fd = *channel.fds.first().context("a channel without a descriptor")?;
            match channel.kind {
                ChannelKind::PipeIn => {
                    let file = sys::watch(reopen(plan.pid, fd, OpenOptions::new().read(true))?)?;
                    stdio.inputs.insert(channel.id, Rc::new(file));
                }
                ChannelKind::PipeOut => {
                    let file = sys::watch(reopen(plan.pid, fd, OpenOptions::new().write(true))?)?;
                    stdio.add_output(channel.id, Output::Stream(Rc::new(file)));
                }
                ChannelKind::FileOut => {
                    let file: OwnedFd = sys::take_descriptor(plan.pid, fd).context("cannot share a file with the process")?;
                    stdio.add_output(channel.id, Output::File(Rc::new(File::from(file))));
                }
            }
        }
        if let Some(tty) = &plan.tty {
            let fd = *tty.fds.first().context("a terminal without a descriptor")?;
            let file = Rc::new(sys::watch(reopen(plan.pid, fd, OpenOptions::new().read(true).write(true))?)?);
            stdio.terminal = Some(file.clone());
            stdio.add_output(TERMINAL, Output::Stream(file.clone()));
            stdio.inputs.insert(TERMINAL, file);
        }
        Ok(stdio)
    }

    fn add_output(&mut self, id: u16, output: Output) {
        let (sender, queue) = mpsc::channel(QUEUE);
        self.outputs.insert(id, sender);
        let events = self.events.clone();
        self.watched.push(tokio::task::spawn_local(write_out(id, output, queue, events)));
    }

    /// Starts telling ([`Event::InputReady`]) when there is input.
    pub(crate) fn watch_inputs(&mut self) {
        let ids: Vec<u16> = self.inputs.keys().copied().collect();
        ids.into_iter().for_each(|id| self.watch_input(id));
    }

    /// Tells once more when this input has something.
    pub(crate) fn watch_input(&mut self, id: u16) {
        let Some(file) = self.inputs.get(&id).cloned() else { return };
        let (events, pid) = (self.events.clone(), self.pid);
        self.watched.retain(|task| !task.is_finished());
        self.watched.push(tokio::task::spawn_local(async move {
            while let Ok(guard) = file.readable().await {
                drop(guard);
                if id != TERMINAL || is_foreground(pid) {
                    let _ = events.send(Event::InputReady(id)).await;
                    return;
                }
                tokio::time::sleep(FOREGROUND_CHECK).await;
            }
        }));
    }

    /// Reads at most `most` bytes of an input.
    pub(crate) fn read(&mut self, id: u16, most: usize) -> Input {
        let Some(file) = self.inputs.get(&id) else { return Input::End };
        if id == TERMINAL && !is_foreground(self.pid) {
            return Input::Nothing;
        }
        let mut buffer = vec![0; most.min(mosix_guest::CHUNK_BYTES)];
        match file.get_ref().read(&mut buffer) {
            // A terminal's end of file (^D) is no end for good.
            Ok(0) => {
                if id != TERMINAL {
                    self.inputs.remove(&id);
                }
                Input::End
            }
            Ok(count) => {
                buffer.truncate(count);
                Input::Bytes(buffer)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // Tell tokio that the readiness is used up; it was level-checked by the read itself.
                let _ = file.try_io(tokio::io::Interest::READABLE, |_| Err::<(), _>(ErrorKind::WouldBlock.into()));
                Input::Nothing
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Input::Nothing,
            Err(_) => {
                self.inputs.remove(&id);
                Input::End
            }
        }
    }

    /// Queues output; false if nobody reads it any more.
    pub(crate) async fn write(&mut self, id: u16, bytes: Vec<u8>) -> bool {
        let Some(output) = self.outputs.get(&id) else { return false };
        let count = bytes.len();
        if output.send(bytes).await.is_err() {
            self.close_output(id);
            return false;
        }
        *self.unwritten.entry(id).or_default() += count;
        true
    }

    /// The writer has written so much.
    pub(crate) fn written(&mut self, id: u16, bytes: usize) {
        if let Some(left) = self.unwritten.get_mut(&id) {
            *left = left.saturating_sub(bytes);
        }
    }

    /// Everything that the guest wrote has reached its reader's pipe.
    pub(crate) fn all_written(&self) -> bool {
        self.unwritten.values().all(|left| *left == 0)
    }

    /// Nobody reads this output any more.
    pub(crate) fn close_output(&mut self, id: u16) {
        self.outputs.remove(&id);
        self.unwritten.remove(&id);
    }

    /// The guest closed this output: what is queued is still written.
    pub(crate) fn end_output(&mut self, id: u16) {
        self.outputs.remove(&id);
    }

    pub(crate) fn window_size(&self) -> Option<(u16, u16)> {
        sys::window_size(self.terminal.as_ref()?.get_ref().as_fd()).ok()
    }

    pub(crate) fn is_canonical(&self) -> bool {
        self.terminal
            .as_ref()
            .and_then(|file| tcgetattr(file.get_ref()).ok())
            .is_some_and(|settings| settings.local_flags.contains(LocalFlags::ICANON))
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        // Tasks hold the files; readers at home see the end of file only when the last copy is closed.
        self.watched.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

fn reopen(pid: i32, fd: i32, options: &mut OpenOptions) -> Result<File> {
    let path = format!("/proc/{pid}/fd/{fd}");
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(&path).with_context(|| format!("cannot open {path}"))
}

/// The process's group is the foreground group of its terminal. Asked of /proc, since ioctl(TIOCGPGRP) answers only to the terminal's own session.
fn is_foreground(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name in parentheses: state, ppid, pgrp, session, tty_nr, tpgid.
    let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace().skip(2);
    let pgrp = fields.next();
    pgrp.is_some() && pgrp == fields.nth(2)
}

async fn write_out(id: u16, output: Output, mut queue: mpsc::Receiver<Vec<u8>>, events: mpsc::Sender<Event>) {
    while let Some(bytes) = queue.recv().await {
        let count = bytes.len();
        let done = match &output {
            Output::Stream(file) => write_stream(file, &bytes).await,
            Output::File(file) => file.as_ref().write_all(&bytes),
        };
        let event = if done.is_ok() { Event::Written(id, count) } else { Event::Broken(id) };
        let broken = done.is_err();
        if events.send(event).await.is_err() || broken {
            return;
        }
    }
}

async fn write_stream(file: &AsyncFd<File>, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let count = file.async_io(tokio::io::Interest::WRITABLE, |mut file| file.write(bytes)).await?;
        bytes = bytes.get(count..).unwrap_or_default();
    }
    Ok(())
}
