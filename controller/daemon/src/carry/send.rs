//! The sending end: rounds of pages while the process runs, then the dump with the last ones beside it, then the images.
//!
//! Runs on a thread of its own. What counts is the time from *stopped* to the last byte, so everything that can be done before is done before
//! (the connection, following the memory, the copy of what CRIU would ask the kernel for), what can be done beside CRIU is (the last
//! scan, judging the process once more), and what can be done after is left for later (taking the write protection off).

use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use mosix_criu::{DumpOptions, Skeleton, TrustedRange, write_trusted};
use mosix_guest::Carried;
use mosix_pages::precopy::{self, Goal, Step};
use mosix_pages::{Options, Outlet, OutletOptions, Source, TrackKind};
use mosix_wire::blocking::BlockingStream;
use mosix_wire::control::{Downtime, Round};

use super::{Form, files, follow};

/// What is sent is gathered up to so much: one TLS record and one system call for many small frames.
const BUFFER_BYTES: usize = 256 << 10;

/// Whoever runs CRIU on the process.
pub(crate) trait Dumper {
    /// Dumps into the parcel's folder and leaves the process frozen. On an error it runs.
    ///
    /// Once `beside` has said yes to [`Beside::Held`] the process stays frozen, whatever becomes of CRIU then; and it is not to be touched
    /// before this returns.
    fn dump(&mut self, options: &DumpOptions<'_>, beside: &mut dyn FnMut(Beside) -> Result<(), String>) -> Result<()>;
}

/// Where a dump is.
pub(crate) enum Beside {
    /// CRIU has been started and has touched nothing.
    Before,
    /// All threads are stopped.
    Stopped,
    /// The images are complete, the process is frozen.
    Held {
        /// Nothing of it has run since.
        since: Instant,
        carried: Carried,
    },
}

/// Whether what was planned for the process still holds.
pub(crate) trait Check: Sync {
    /// While it still runs: may take its time.
    fn before(&self) -> Result<()>;
    /// Now that it is frozen; nothing of it can change any more.
    fn held(&self) -> Result<()>;
}

/// What is to be sent, and how.
pub(crate) struct Parcel {
    pub(crate) link: BlockingStream,
    /// For the images; exists and is empty.
    pub(crate) dir: PathBuf,
    /// Pid as this daemon sees it.
    pub(crate) pid: i32,
    /// Pid as its CRIU sees it.
    pub(crate) inner_pid: i32,
    /// `None`: images with memory.
    pub(crate) pages: Option<Pages>,
}

/// How pages are copied beforehand.
pub(crate) struct Pages {
    pub(crate) goal: Goal,
    pub(crate) track: TrackKind,
    pub(crate) limit_bytes_per_s: Option<u64>,
    /// CRIU's cache of kernel features.
    pub(crate) kerndat: PathBuf,
}

/// A body that is on its way: its original is frozen.
pub(crate) struct Sent {
    pub(crate) since: Instant,
    pub(crate) record: Downtime,
}

type Link = BufWriter<BlockingStream>;

/// The memory on its way.
struct Copying {
    source: Source,
    outlet: Outlet<Link>,
}

/// Sends a body. `check` may call it off until it is frozen; `announce` is called when it is on its way, which is some milliseconds before CRIU has
/// let go of it and this returns. What is returned follows the memory of the frozen process: drop it when that runs again or is gone, for it
/// takes the kernel 60 to 110 ms a GiB.
///
/// # Errors
/// The process runs on where it is, and the receiver has nothing that could be started. Not after `announce`.
pub(crate) fn send(parcel: Parcel, dumper: &mut dyn Dumper, check: &dyn Check, announce: &mut dyn FnMut(Sent)) -> Result<Option<Source>> {
    let Parcel { link, dir, pid, inner_pid, pages } = parcel;
    let mut link = BufWriter::with_capacity(BUFFER_BYTES, link);
    mosix_guest::send(&mut link, &Form { pages: pages.is_some() })?;
    let Some(pages) = pages else {
        send_images(link, &dir, dumper, check, announce)?;
        return Ok(None);
    };
    let outlet = OutletOptions { limit_bytes_per_s: pages.limit_bytes_per_s, ..OutletOptions::default() };
    let mut copying = Copying {
        source: Source::start(&[pid], Options { track: Some(pages.track), take: Some(follow::take), ..Options::default() })?,
        outlet: Outlet::new(vec![link], &outlet).context("cannot begin to send pages")?,
    };
    let mut record = Downtime::default();
    copy_beforehand(&mut copying, &pages.goal, &mut record)?;
    let aside = Aside::make(&dir)?;
    let options = DumpOptions {
        skeleton: Some(Skeleton::Patched { shared: false }),
        trust: Some(&aside.trust),
        smaps: Some(&aside.smaps),
        kerndat: Some(&pages.kerndat),
        no_breakpoints: true,
        ..DumpOptions::default()
    };
    std::thread::scope(|scope| {
        let state = State::Copying(copying);
        let mut stages = Stages { state, aside: &aside, dir: &dir, pid, inner_pid, record };
        dumper.dump(&options, &mut |beside| stages.at(beside, scope, check, announce).map_err(|error| format!("{error:#}")))?;
        stages.source().map(Some)
    })
}

/// Everything in the images, all of it in the blackout.
fn send_images(mut link: Link, dir: &Path, dumper: &mut dyn Dumper, check: &dyn Check, announce: &mut dyn FnMut(Sent)) -> Result<()> {
    let mut send = |since: Instant, carried| -> Result<()> {
        let mut record = Downtime { dump_ms: ms(since), ..Downtime::default() };
        record.image_bytes = files::send(&mut link, dir)?;
        check.held()?;
        files::end(&mut link, carried)?;
        record.sent_ms = ms(since);
        announce(Sent { since, record });
        Ok(())
    };
    dumper.dump(&DumpOptions::default(), &mut |beside| {
        let done = match beside {
            Beside::Before => check.before(),
            Beside::Stopped => Ok(()),
            Beside::Held { since, carried } => send(since, carried),
        };
        done.map_err(|error| format!("{error:#}"))
    })
}

/// Rounds while the process runs, until another one is not worth it.
fn copy_beforehand(copying: &mut Copying, goal: &Goal, record: &mut Downtime) -> Result<()> {
    let started = Instant::now();
    let mut rounds = Vec::new();
    record.frozen_because = loop {
        let figures = copying.source.round(&mut copying.outlet)?;
        rounds.push(figures.as_round());
        record.rounds.push(Round { bytes: figures.sent.wire_bytes, ms: figures.total.as_secs_f64() * 1000.0 });
        match precopy::next(goal, &rounds) {
            Step::Round | Step::Throttle(_) => {}
            Step::Freeze(reason) => break reason.to_string(),
        }
    };
    record.precopy_ms = ms(started);
    Ok(())
}

/// Files for CRIU that are not images.
struct Aside {
    trust: PathBuf,
    smaps: PathBuf,
}

impl Aside {
    /// In a folder beside the images: all files in theirs are sent.
    fn make(dir: &Path) -> Result<Self> {
        let aside = dir.join("aside");
        let smaps = aside.join("smaps");
        std::fs::create_dir_all(&smaps).with_context(|| format!("cannot make {}", smaps.display()))?;
        Ok(Self { trust: aside.join("trust"), smaps })
    }
}

/// What is done beside CRIU.
struct Stages<'scope, 'a> {
    state: State<'scope>,
    aside: &'a Aside,
    dir: &'a Path,
    pid: i32,
    inner_pid: i32,
    record: Downtime,
}

enum State<'scope> {
    Copying(Copying),
    /// The last scan, on a thread of its own: CRIU goes on meanwhile.
    Scanning(ScopedJoinHandle<'scope, Result<(Copying, Instant)>>),
    Sent(Source),
    /// Something went wrong in between.
    Lost,
}

impl<'scope> Stages<'scope, '_> {
    fn at<'env>(
        &mut self,
        beside: Beside,
        scope: &'scope Scope<'scope, 'env>,
        check: &'env dyn Check,
        announce: &mut dyn FnMut(Sent),
    ) -> Result<()> {
        let state = std::mem::replace(&mut self.state, State::Lost);
        self.state = match (beside, state) {
            (Beside::Before, State::Copying(copying)) => {
                check.before()?;
                State::Copying(self.last_round(copying)?)
            }
            (Beside::Stopped, State::Copying(mut copying)) => State::Scanning(scope.spawn(move || {
                copying.source.freeze_round(&mut copying.outlet)?;
                Ok((copying, Instant::now()))
            })),
            (Beside::Held { since, carried }, State::Scanning(scanning)) => {
                self.record.dump_ms = ms(since);
                let checking = scope.spawn(|| check.held());
                let scanned = scanning.join().map_err(|_| anyhow!("the thread that sends the last pages panicked"))?;
                let (copying, scanned) = scanned?;
                self.record.delta_ms = scanned.saturating_duration_since(since).as_secs_f64() * 1000.0;
                let (mut link, source) = self.finish(copying)?;
                checking.join().map_err(|_| anyhow!("the thread that judges the process panicked"))??;
                files::end(&mut link, carried)?;
                self.record.sent_ms = ms(since);
                announce(Sent { since, record: self.record.clone() });
                State::Sent(source)
            }
            _ => return Err(anyhow!("CRIU took its steps in another order")),
        };
        Ok(())
    }

    fn source(self) -> Result<Source> {
        match self.state {
            State::Sent(source) => Ok(source),
            _ => Err(anyhow!("the dump ended before it was complete")),
        }
    }

    /// CRIU has been started and has touched nothing yet: what can be known before the stop is told now.
    fn last_round(&mut self, mut copying: Copying) -> Result<Copying> {
        let figures = copying.source.round(&mut copying.outlet)?;
        self.record.rounds.push(Round { bytes: figures.sent.wire_bytes, ms: figures.total.as_secs_f64() * 1000.0 });
        let windows = copying.source.windows(self.pid);
        let trusted = windows.iter().map(|window| TrustedRange { pid: self.inner_pid, start: window.range.start, end: window.range.end });
        write_trusted(&self.aside.trust, &trusted.collect::<Vec<_>>()).context("cannot tell CRIU which memory is taken care of")?;
        let smaps = std::fs::read(format!("/proc/{}/smaps", self.pid)).context("cannot read its mappings")?;
        std::fs::write(self.aside.smaps.join(self.inner_pid.to_string()), smaps).context("cannot copy its mappings")?;
        Ok(copying)
    }

    /// The images are complete and the process is frozen.
    fn finish(&mut self, mut copying: Copying) -> Result<(Link, Source)> {
        if files::processes(self.dir)? != 1 {
            return Err(anyhow!("it has started a process meanwhile: try again"));
        }
        copying.source.after_dump(&mut copying.outlet)?;
        copying.source.end(&mut copying.outlet)?;
        self.record.page_bytes = copying.outlet.counters().wire_bytes;
        let mut link = copying.outlet.into_links().pop().context("the connection has gone")?;
        self.record.image_bytes = files::send(&mut link, self.dir)?;
        Ok((link, copying.source))
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
