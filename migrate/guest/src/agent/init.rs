//! Pid 1 of the guest's namespaces: sets the scene, then one event loop for home's orders, the guest's output, and its fate.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use mosix_criu::freezer::Freezer;
use mosix_criu::freezer::Moment;
use mosix_guest::{Carried, DumpStep, End, FromAgent, ProtocolError, Setup, SkeletonSpec, ToAgent, receive, send};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, setsid};

use super::channel::{Channel, Output, read_some};
use super::parent::{Link, ParentNews, ParentOrder};
use super::readers::{self, Identity, Watch};
use super::tty::{END_OF_FILE, Terminal};
use super::{family, hop, sys};

/// Orders that are kept while a dump is under way; mosixd keeps them itself.
const MAX_POSTPONED: usize = 64;

pub(crate) fn run(control: UnixStream, mut setup: Setup) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    setsid()?;
    set_scene(&setup)?;
    let children = watch_children()?;
    let terminal = setup.tty.take().map(Terminal::open).transpose()?;
    let mut channels = Vec::new();
    let mut guest_ends = Vec::new();
    for spec in std::mem::take(&mut setup.channels) {
        let (channel, guest_end) = Channel::open(spec)?;
        channels.push(channel);
        guest_ends.push(guest_end);
    }
    let freezer = Freezer::create(&setup.freezer)?;
    let link = family::start(&setup, terminal.as_ref(), guest_ends)?;
    let mut agent = Agent {
        setup,
        control,
        link: Some(link),
        children,
        terminal,
        terminal_credit: mosix_guest::OUTPUT_WINDOW_BYTES,
        channels,
        freezer,
        watches: Vec::new(),
        unread: Vec::new(),
        phase: Phase::Waiting,
        ended: None,
        postponed: VecDeque::new(),
    };
    // With premem it is ready when CRIU waits.
    if agent.setup.premem.is_none() {
        agent.ready()?;
    }
    while agent.phase != Phase::Over {
        agent.step()?;
    }
    Ok(())
}

fn set_scene(setup: &Setup) -> Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).context("cannot make the mounts private")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, NONE).context("cannot mount /proc")?;
    nix::unistd::sethostname(&setup.hostname).context("cannot set the host name")
}

fn watch_children() -> Result<SignalFd> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// Where the guest is in its life here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Namespaces stand, no images yet.
    Waiting,
    /// CRIU works or waits for the word.
    Restoring,
    /// The guest runs.
    Running,
    /// Dumped and frozen.
    Held,
    /// Nothing left to do.
    Over,
}

struct Agent {
    setup: Setup,
    control: UnixStream,
    /// `None` once the parent has ended.
    link: Option<Link>,
    children: SignalFd,
    terminal: Option<Terminal>,
    terminal_credit: usize,
    channels: Vec<Channel>,
    freezer: Freezer,
    watches: Vec<Watch>,
    /// Input from before the move, delivered when the guest runs.
    unread: Vec<(u16, Vec<u8>)>,
    phase: Phase,
    /// How the root ended, until that has been told.
    ended: Option<(End, u64)>,
    /// Orders that came while a step of a dump was being answered.
    postponed: VecDeque<ToAgent>,
}

/// What poll(2) found ready.
#[derive(Default)]
struct Ready {
    control: bool,
    link: bool,
    children: bool,
    terminal: bool,
}

impl Agent {
    fn step(&mut self) -> Result<()> {
        let ready = self.wait()?;
        if ready.link {
            self.parent_news()?;
        }
        if ready.children {
            self.reap()?;
        }
        self.move_data(ready.terminal)?;
        self.look_for_readers()?;
        self.finish_if_ended()?;
        if ready.control {
            self.order()?;
        }
        Ok(())
    }

    fn wait(&self) -> Result<Ready> {
        let mut fds = vec![PollFd::new(self.control.as_fd(), PollFlags::POLLIN), PollFd::new(self.children.as_fd(), PollFlags::POLLIN)];
        let link = self.link.as_ref().map(|link| push(&mut fds, PollFd::new(link.as_fd(), PollFlags::POLLIN)));
        let terminal = self
            .terminal
            .as_ref()
            .filter(|_| self.phase == Phase::Running && self.terminal_credit > 0)
            .map(|terminal| push(&mut fds, PollFd::new(terminal.master.as_fd(), PollFlags::POLLIN)));
        if self.phase == Phase::Running {
            fds.extend(self.channels.iter().filter_map(Channel::interest).map(|(fd, flags)| PollFd::new(fd, flags)));
        }
        match poll(&mut fds, self.timeout()) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => bail!("poll: {errno}"),
        }
        let is_ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
        Ok(Ready {
            control: is_ready(0),
            children: is_ready(1),
            link: link.is_some_and(is_ready),
            terminal: terminal.is_some_and(is_ready),
        })
    }

    fn timeout(&self) -> PollTimeout {
        let now = Instant::now();
        let next = self.watches.iter().map(Watch::due).min();
        match next {
            // Rounded up: a timeout of 0 just before the time would spin.
            Some(due) => {
                PollTimeout::try_from(due.saturating_duration_since(now) + Duration::from_micros(999)).unwrap_or(PollTimeout::NONE)
            }
            None => PollTimeout::NONE,
        }
    }

    fn tell(&mut self, message: &FromAgent) -> Result<()> {
        send(&mut self.control, message).context("mosixd has gone")
    }

    // --- home's orders -------------------------------------------------------------------------------------------------

    fn ready(&mut self) -> Result<()> {
        let keys = self.channels.iter().map(|channel| (channel.id(), channel.key().to_owned())).collect();
        self.tell(&FromAgent::Ready { keys })
    }

    fn order(&mut self) -> Result<()> {
        // An error here is the end of the connection: init ends, and with it everything in this namespace.
        let order: ToAgent = match receive(&mut self.control) {
            Ok(order) => order,
            Err(ProtocolError::Io(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => return self.end(),
            Err(error) => return Err(error).context("mosixd has gone"),
        };
        self.obey(order)?;
        while self.phase != Phase::Over
            && let Some(order) = self.postponed.pop_front()
        {
            self.obey(order)?;
        }
        Ok(())
    }

    fn obey(&mut self, order: ToAgent) -> Result<()> {
        match order {
            ToAgent::Window { start, length_bytes, no_reserve } if self.phase == Phase::Waiting => {
                self.order_parent(&ParentOrder::Window { start, length_bytes, no_reserve })
            }
            ToAgent::Restore { carried } if self.phase == Phase::Waiting => self.restore(carried),
            ToAgent::Commit if self.phase == Phase::Restoring => self.order_parent(&ParentOrder::Go),
            ToAgent::Abort if self.phase == Phase::Restoring => self.order_parent(&ParentOrder::Veto("home gave the move up".into())),
            ToAgent::Abort | ToAgent::Kill => self.end(),
            ToAgent::Signal { signo, value } => self.signal(signo, value),
            ToAgent::Data { id, bytes } => self.input(id, &bytes),
            ToAgent::Pending { id } => {
                self.watches.retain(|watch| watch.id != id);
                self.watches.push(Watch::new(id, Instant::now()));
                self.look_for_readers()
            }
            ToAgent::EndOfInput { id } => self.end_of_input(id),
            ToAgent::Credit { id, bytes } => {
                self.credit(id, bytes as usize);
                Ok(())
            }
            ToAgent::Closed { id } => {
                self.channels.iter_mut().filter(|channel| channel.id() == id).for_each(Channel::close);
                Ok(())
            }
            ToAgent::WindowSize { size } => match &self.terminal {
                Some(terminal) => Ok(terminal.resize(size)?),
                None => Ok(()),
            },
            ToAgent::Dump { images_dir, skeleton } => self.dump(&images_dir, skeleton.as_ref()),
            // Of a dump that has ended by itself.
            ToAgent::GoOn { .. } => Ok(()),
            ToAgent::Thaw if self.phase == Phase::Held => self.thaw(),
            // The dump had failed: it runs anyway.
            ToAgent::Thaw if self.phase == Phase::Running => Ok(()),
            ToAgent::Release => self.end(),
            other @ (ToAgent::Setup(_) | ToAgent::Window { .. } | ToAgent::Restore { .. } | ToAgent::Commit | ToAgent::Thaw) => {
                bail!("order {other:?} does not fit the phase {:?}", self.phase)
            }
        }
    }

    fn restore(&mut self, carried: Carried) -> Result<()> {
        family::reserve_numbers(&self.setup, carried.max_tid).context("cannot keep the guest's numbers free")?;
        self.unread = carried.unread;
        self.phase = Phase::Restoring;
        self.order_parent(&ParentOrder::Restore)
    }

    fn order_parent(&self, order: &ParentOrder) -> Result<()> {
        self.link.as_ref().ok_or_else(|| anyhow!("the guest's parent has gone"))?.send(order)
    }

    /// The end of init is the end of everything in its namespace.
    fn end(&mut self) -> Result<()> {
        self.phase = Phase::Over;
        Ok(())
    }

    fn signal(&mut self, signo: i32, value: Option<i64>) -> Result<()> {
        if self.phase != Phase::Running || self.ended.is_some() {
            return Ok(());
        }
        let guest = Pid::from_raw(self.setup.pid);
        // An error means that the guest has just ended; its status is on the way.
        let _ = match (value, Signal::try_from(signo)) {
            (None, Ok(signal)) => kill(guest, signal).map_err(std::io::Error::from),
            _ => sys::queue_signal(guest, signo, value.unwrap_or(0)),
        };
        Ok(())
    }

    fn input(&mut self, id: u16, bytes: &[u8]) -> Result<()> {
        if let Some(terminal) = self.terminal.as_ref().filter(|terminal| terminal.spec.id == id) {
            // The guest was seen reading and asked for no more than fits into the line discipline's 4 KiB.
            nix::unistd::write(&terminal.master, bytes).context("cannot deliver terminal input")?;
            return Ok(());
        }
        self.channels.iter_mut().filter(|channel| channel.id() == id).for_each(|channel| channel.deliver(bytes));
        Ok(())
    }

    fn end_of_input(&mut self, id: u16) -> Result<()> {
        self.watches.retain(|watch| watch.id != id);
        if self.terminal.as_ref().is_some_and(|terminal| terminal.spec.id == id) {
            return self.input(id, &[END_OF_FILE]);
        }
        self.channels.iter_mut().filter(|channel| channel.id() == id).for_each(Channel::finish_input);
        Ok(())
    }

    fn credit(&mut self, id: u16, bytes: usize) {
        if self.terminal.as_ref().is_some_and(|terminal| terminal.spec.id == id) {
            self.terminal_credit = (self.terminal_credit + bytes).min(mosix_guest::OUTPUT_WINDOW_BYTES);
        }
        self.channels.iter_mut().filter(|channel| channel.id() == id).for_each(|channel| channel.grant(bytes));
    }

    // --- the guest's life ----------------------------------------------------------------------------------------------

    fn parent_news(&mut self) -> Result<()> {
        let Some(link) = &self.link else { return Ok(()) };
        let news: ParentNews = match link.receive() {
            Ok(news) => news,
            Err(_) => {
                self.link = None;
                return if matches!(self.phase, Phase::Waiting | Phase::Restoring) {
                    self.failed("the restoring process ended unexpectedly")
                } else {
                    Ok(())
                };
            }
        };
        match news {
            // What its memory costs is the guest's; and from outside it is found by this group.
            ParentNews::Waiting { pid } => {
                self.freezer.enter(pid)?;
                self.ready()
            }
            ParentNews::Window(address) => self.tell(&FromAgent::Window { address }),
            ParentNews::Prepared => match self.settle() {
                Ok(()) => self.tell(&FromAgent::Prepared),
                Err(error) => self.order_parent(&ParentOrder::Veto(format!("{error:#}"))),
            },
            ParentNews::Running => {
                self.phase = Phase::Running;
                self.deliver_unread()?;
                self.tell(&FromAgent::Running)?;
                // For the same reason only now: it runs a few milliseconds without the bounds of this node. It may have ended already.
                if let Err(error) = hop::join_cgroups(&self.setup)
                    && nix::sys::signal::kill(Pid::from_raw(self.setup.pid), None).is_ok()
                {
                    eprintln!("mosix-agent: guest {} runs without the bounds of this node: {error:#}", self.setup.pid);
                }
                Ok(())
            }
            ParentNews::Failed(why) => self.failed(&why),
            ParentNews::Status { status, cpu_ms } => self.status(status, cpu_ms),
        }
    }

    /// The guest is complete and still: last things before it may run.
    fn settle(&mut self) -> Result<()> {
        // With premem CRIU was there from the start, and the guest is its child. The kernel may take ten milliseconds for a change of a group.
        if self.setup.premem.is_none() {
            self.freezer.enter(self.setup.pid)?;
        }
        hop::pin(&self.setup)?;
        self.terminal.as_ref().map_or(Ok(()), Terminal::stop_cooking)
    }

    fn deliver_unread(&mut self) -> Result<()> {
        std::mem::take(&mut self.unread).iter().try_for_each(|(id, bytes)| self.input(*id, bytes))
    }

    fn failed(&mut self, why: &str) -> Result<()> {
        self.tell(&FromAgent::Failed { why: why.to_owned() })?;
        self.end()
    }

    fn reap(&mut self) -> Result<()> {
        while let Ok(Some(_)) = self.children.read_signal() {}
        while let Some(news) = sys::wait_child(-1, false) {
            if news.pid == self.setup.pid {
                self.status(news.status, news.cpu_ms)?;
            }
        }
        Ok(())
    }

    fn status(&mut self, status: i32, cpu_ms: u64) -> Result<()> {
        if libc::WIFSTOPPED(status) {
            return self.tell(&FromAgent::Stopped { signal: libc::WSTOPSIG(status) });
        }
        if libc::WIFCONTINUED(status) {
            return self.tell(&FromAgent::Continued);
        }
        let end = if libc::WIFEXITED(status) {
            End::Exited(libc::WEXITSTATUS(status))
        } else {
            End::Signaled { signal: libc::WTERMSIG(status), core: libc::WCOREDUMP(status) }
        };
        self.ended = Some((end, cpu_ms));
        Ok(())
    }

    /// Tells the end of the root once all that it wrote has gone out; its orphans, if any, are carried on.
    fn finish_if_ended(&mut self) -> Result<()> {
        if let Some((end, cpu_ms)) = self.ended
            && self.drain()?
        {
            self.ended = None;
            self.tell(&FromAgent::Exited { end, cpu_ms })?;
            self.link = None;
            self.setup.pid = 0;
        }
        if self.phase == Phase::Running && self.setup.pid == 0 && self.freezer.members().is_empty() {
            return self.end();
        }
        Ok(())
    }

    // --- data ----------------------------------------------------------------------------------------------------------

    fn move_data(&mut self, terminal_ready: bool) -> Result<()> {
        if self.phase != Phase::Running {
            return Ok(());
        }
        if terminal_ready {
            self.terminal_output()?;
        }
        for index in 0..self.channels.len() {
            self.channel_output(index)?;
        }
        self.channels.iter_mut().for_each(Channel::flush);
        Ok(())
    }

    /// Returns whether there was something.
    fn channel_output(&mut self, index: usize) -> Result<bool> {
        let Some(channel) = self.channels.get_mut(index) else { return Ok(false) };
        let id = channel.id();
        match channel.take_output() {
            Output::Bytes(bytes) => self.tell(&FromAgent::Data { id, bytes }).map(|()| true),
            Output::Eof => self.tell(&FromAgent::Eof { id }).map(|()| false),
            Output::Nothing => Ok(false),
        }
    }

    fn terminal_output(&mut self) -> Result<bool> {
        let Some(terminal) = self.terminal.as_mut() else { return Ok(false) };
        let id = terminal.spec.id;
        let most = self.terminal_credit.min(mosix_guest::CHUNK_BYTES);
        if most == 0 {
            return Ok(false);
        }
        match read_some(&mut terminal.master, most) {
            Output::Bytes(bytes) => {
                self.terminal_credit -= bytes.len();
                self.tell(&FromAgent::Data { id, bytes })?;
                Ok(true)
            }
            Output::Eof | Output::Nothing => Ok(false),
        }
    }

    /// Sends all output that is there; false if home must grant credit first.
    fn drain(&mut self) -> Result<bool> {
        while self.terminal_output()? {}
        for index in 0..self.channels.len() {
            while self.channel_output(index)? {}
        }
        let is_open = |channel: &Channel| {
            channel.spec.direction == mosix_guest::Direction::Output && channel.interest().is_none() && !channel.has_credit()
        };
        Ok(!self.channels.iter().any(is_open) && (self.terminal.is_none() || self.terminal_credit > 0))
    }

    fn look_for_readers(&mut self) -> Result<()> {
        if self.phase != Phase::Running || self.watches.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let pids = self.freezer.members();
        let mut found = Vec::new();
        for watch in &mut self.watches {
            if watch.due() > now {
                continue;
            }
            if has_unread(self.terminal.as_ref(), &self.channels, watch.id) {
                watch.postpone(now);
                continue;
            }
            let identity = identity(self.terminal.as_ref(), &self.channels, watch.id);
            let polls = !self.channels.iter().any(|channel| channel.id() == watch.id && channel.spec.shared);
            match identity.and_then(|identity| readers::wanted(&pids, identity, polls)) {
                Some(bytes) => found.push((watch.id, bytes)),
                None => watch.postpone(now),
            }
        }
        for (id, bytes) in found {
            self.watches.retain(|watch| watch.id != id);
            self.tell(&FromAgent::Wants { id, bytes })?;
        }
        Ok(())
    }

    // --- the next hop --------------------------------------------------------------------------------------------------

    fn dump(&mut self, images_dir: &str, skeleton: Option<&SkeletonSpec>) -> Result<()> {
        if self.phase != Phase::Running || self.ended.is_some() || self.setup.pid == 0 {
            return self.tell(&FromAgent::DumpFailed { why: "the process has just ended".into() });
        }
        let (setup, freezer) = (self.setup.clone(), self.freezer.clone());
        match hop::dump(&setup, &freezer, images_dir, skeleton, &mut |moment| self.beside(moment)) {
            Ok(_) => {
                self.phase = Phase::Held;
                self.tell(&FromAgent::Dumped)
            }
            Err(error) => self.tell(&FromAgent::DumpFailed { why: format!("{error:#}") }),
        }
    }

    /// Tells mosixd how far the dump is, and hears whether it shall go on.
    fn beside(&mut self, moment: Moment) -> std::result::Result<(), String> {
        let text = |error: anyhow::Error| format!("{error:#}");
        let step = match moment {
            Moment::Before => DumpStep::Before,
            Moment::Stopped => return self.tell(&FromAgent::Step(DumpStep::Stopped)).map_err(text),
            Moment::Held { since } => {
                let carried = self.carried().map_err(text)?;
                DumpStep::Held { carried, frozen_us: u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX) }
            }
        };
        self.tell(&FromAgent::Step(step)).map_err(text)?;
        loop {
            if self.postponed.len() >= MAX_POSTPONED {
                return Err("mosixd sends orders while the guest is being dumped".into());
            }
            match receive(&mut self.control).map_err(|error: ProtocolError| format!("mosixd has gone: {error}"))? {
                ToAgent::GoOn { veto: None } => return Ok(()),
                ToAgent::GoOn { veto: Some(why) } => return Err(why),
                order @ (ToAgent::Kill | ToAgent::Abort) => {
                    self.postponed.push_back(order);
                    return Err("the guest is to end".into());
                }
                // The guest still runs, and what was sent to it before must reach it before it is stopped.
                other if moment == Moment::Before && is_daily(&other) => self.obey(other).map_err(text)?,
                other => self.postponed.push_back(other),
            }
        }
    }

    /// What the frozen guest was given and has not read.
    fn carried(&mut self) -> Result<Carried> {
        if !self.drain()? {
            bail!("its output waits for a slow reader at home; try again later");
        }
        let mut unread = Vec::new();
        for channel in &mut self.channels {
            let bytes = channel.take_unread()?;
            if !bytes.is_empty() {
                unread.push((channel.id(), bytes.clone()));
                // Kept for the way back; a release throws it away with everything else.
                channel.deliver(&bytes);
            }
        }
        Ok(Carried { max_tid: hop::highest_number(&self.freezer.members()), unread })
    }

    fn thaw(&mut self) -> Result<()> {
        hop::resume(&self.setup, &self.freezer)?;
        self.phase = Phase::Running;
        Ok(())
    }
}

/// What a running guest may be sent at any time.
fn is_daily(order: &ToAgent) -> bool {
    matches!(
        order,
        ToAgent::Signal { .. }
            | ToAgent::Data { .. }
            | ToAgent::Pending { .. }
            | ToAgent::EndOfInput { .. }
            | ToAgent::Credit { .. }
            | ToAgent::Closed { .. }
            | ToAgent::WindowSize { .. }
    )
}

fn has_unread(terminal: Option<&Terminal>, channels: &[Channel], id: u16) -> bool {
    let in_terminal = terminal.is_some_and(|terminal| terminal.spec.id == id && terminal.has_unread());
    in_terminal || channels.iter().any(|channel| channel.id() == id && channel.has_unread())
}

fn identity(terminal: Option<&Terminal>, channels: &[Channel], id: u16) -> Option<Identity> {
    if let Some(terminal) = terminal.filter(|terminal| terminal.spec.id == id) {
        let stat = nix::sys::stat::fstat(&terminal.slave).ok()?;
        return Some(Identity::Terminal(stat.st_rdev));
    }
    let channel = channels.iter().find(|channel| channel.id() == id)?;
    let inode = channel.key().strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok()?;
    Some(Identity::Pipe(inode))
}

fn push<'a>(fds: &mut Vec<PollFd<'a>>, fd: PollFd<'a>) -> usize {
    fds.push(fd);
    fds.len() - 1
}
