//! The original body at home: dumped, held, let go, or turned into a stub.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mosix_criu::freezer::{Freezer, Moment, dump_and_hold};
use mosix_criu::{Criu, DumpOptions, DumpRequest};
use mosix_deputy::{StubEvent, Watcher};
use mosix_engine::commit::Stamp;
use mosix_engine::eligible::Plan;
use mosix_engine::facts::{Facts, Fingerprint};
use mosix_guest::Carried;
use mosix_pages::Source;
use mosix_wire::blocking::BlockingStream;
use mosix_wire::tls::Tls;
use tokio::sync::Notify;

use super::{judge_held, judge_process, same_plan};
use crate::carry::send::{Beside, Check, Dumper, Pages, Parcel, Sent, send};
use crate::carry::{self, files};
use crate::cgroups::{Membership, Mounts};
use crate::node::Node;

/// The body of a process that has not left yet.
#[derive(Clone)]
pub(crate) struct Body {
    plan: Plan,
    helpers: Vec<i32>,
    pid: i32,
    shell_job: bool,
    external: Vec<String>,
    max_tid: i32,
    freezer_dir: PathBuf,
    dump_cgroups: Vec<PathBuf>,
    membership: Membership,
    criu: Criu,
    tls: Tls,
    deadline: Duration,
    connect: Duration,
}

impl Body {
    pub(crate) fn new(node: &Node, plan: &Plan, group: u64) -> Self {
        let freezer_dir = node.freezer_root.join(format!("home-{group:x}"));
        let dump_cgroups = node.config.node.dump_cgroups.clone();
        let touched: Vec<PathBuf> = dump_cgroups.iter().cloned().chain([freezer_dir.clone()]).collect();
        Self {
            plan: plan.clone(),
            helpers: super::helper_pids(node),
            pid: plan.pid,
            shell_job: plan.sid != plan.pid,
            external: plan.channels.iter().filter_map(|channel| channel.external.clone()).collect(),
            max_tid: plan.tids.iter().copied().max().unwrap_or(plan.pid),
            freezer_dir,
            membership: Membership::of(plan.pid).touched_by(touched.iter(), &Mounts::read()),
            dump_cgroups,
            criu: node.criu.clone(),
            tls: node.tls.clone(),
            deadline: node.config.move_timeout(),
            connect: node.config.connect_timeout(),
        }
    }

    /// Copies its memory, freezes, dumps into `dir` and sends it, unless told to give up. On an error the process runs.
    pub(crate) async fn send(
        self,
        target: String,
        stamp: Stamp,
        dir: PathBuf,
        pages: Option<Pages>,
        give_up: &Notify,
        announce: impl Fn(Sent) + Send + 'static,
    ) -> Result<Option<Source>> {
        let stream = carry::open(&self.tls, &target, stamp, self.connect).await?;
        let link = BlockingStream::new(stream, self.deadline).context("cannot hand the connection over")?;
        let breaker = link.breaker()?;
        files::make_dir(&dir)?;
        let parcel = Parcel { link, dir: dir.clone(), pid: self.pid, inner_pid: self.pid, pages };
        let body = self.clone();
        let sending = tokio::task::spawn_blocking(move || {
            let mut dumper = Native { body: &body, dir: &parcel.dir.clone() };
            send(parcel, &mut dumper, &StillAsPlanned { body: &body, seen: Mutex::default() }, &mut |sent| announce(sent))
        });
        tokio::pin!(sending);
        let result = tokio::select! {
            result = &mut sending => result,
            () = give_up.notified() => {
                breaker.cut();
                sending.await
            }
        };
        let result = result.map_err(anyhow::Error::from).and_then(|result| result);
        keep_log(&dir, result.is_err());
        let _ = std::fs::remove_dir_all(&dir);
        result
    }

    /// Lets the held body run on as if nothing had happened.
    pub(crate) fn thaw(&self) -> Result<()> {
        // First the groups: it must not run without its quota.
        self.membership_without_freezer();
        if self.freezer_dir.exists() {
            Freezer::create(&self.freezer_dir)?.thaw()?;
        }
        self.put_back();
        Ok(())
    }

    fn membership_without_freezer(&self) {
        // A process leaves its freezer only when it is thawed; the other hierarchies come first.
        if !self.dump_cgroups.is_empty() {
            self.membership.clone().touched_by(self.dump_cgroups.iter(), &Mounts::read()).restore(self.pid);
        }
    }

    fn put_back(&self) {
        self.membership.restore(self.pid);
        if self.freezer_dir.exists()
            && let Ok(freezer) = Freezer::create(&self.freezer_dir)
        {
            freezer.remove();
        }
    }

    /// Turns the held body into a stub. Blocks for the injection.
    pub(crate) fn become_stub(&self, watcher: &Arc<Watcher>, on_event: Box<dyn Fn(StubEvent) + Send>) -> Result<()> {
        watcher.adopt(self.pid, &self.freezer_dir, &[], on_event)?;
        self.put_back();
        Ok(())
    }
}

/// The plan was made while the process ran. It must still hold when it cannot run any more, or the copy would lack what was opened meanwhile.
///
/// Judging takes milliseconds. So it is done just before the stop, with a fingerprint of the process from before that; and once more in the
/// blackout only if the fingerprint has changed.
struct StillAsPlanned<'a> {
    body: &'a Body,
    seen: Mutex<Option<Fingerprint>>,
}

impl StillAsPlanned<'_> {
    fn compare(&self, judged: Result<(Plan, Facts)>) -> Result<()> {
        let (plan, _) = judged?;
        if !same_plan(&plan, &self.body.plan) {
            bail!("it opened or closed something while it was being frozen: try again");
        }
        Ok(())
    }
}

impl Check for StillAsPlanned<'_> {
    fn before(&self) -> Result<()> {
        let seen = Fingerprint::of(self.body.pid)?;
        self.compare(judge_process(self.body.pid, &self.body.helpers))?;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        Ok(())
    }

    fn held(&self) -> Result<()> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).take();
        if seen == Some(Fingerprint::of(self.body.pid)?) {
            return Ok(());
        }
        self.compare(judge_held(self.body.pid, &self.body.helpers))
    }
}

/// CRIU as this daemon runs it.
struct Native<'a> {
    body: &'a Body,
    dir: &'a Path,
}

impl Dumper for Native<'_> {
    fn dump(&mut self, options: &DumpOptions<'_>, beside: &mut dyn FnMut(Beside) -> Result<(), String>) -> Result<()> {
        let body = self.body;
        let freezer = Freezer::create(&body.freezer_dir)?;
        freezer.enter(body.pid)?;
        let request = DumpRequest { pid: body.pid, images_dir: self.dir, external: &body.external, shell_job: body.shell_job };
        let mut at = |moment| {
            beside(match moment {
                Moment::Before => Beside::Before,
                Moment::Stopped => Beside::Stopped,
                Moment::Held { since } => Beside::Held { since, carried: Carried { max_tid: body.max_tid, unread: Vec::new() } },
            })
        };
        match dump_and_hold(&body.criu, &request, options, &freezer, &body.dump_cgroups, body.deadline, &mut at) {
            Ok(_) => Ok(()),
            Err(error) => {
                body.put_back();
                Err(error.into())
            }
        }
    }
}

/// Copies CRIU's log aside when something went wrong: it is what one needs to find out why.
fn keep_log(dir: &std::path::Path, failed: bool) {
    if failed && let Some(state) = dir.parent() {
        let _ = std::fs::copy(dir.join("dump.log"), state.join("last-failed-dump.log"));
    }
}
