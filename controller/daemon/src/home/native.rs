//! The original body at home: dumped, held, let go, or turned into a stub.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use mosix_criu::freezer::{Freezer, dump_and_hold};
use mosix_criu::{Criu, DumpRequest};
use mosix_deputy::{StubEvent, Watcher};
use mosix_engine::commit::Stamp;
use mosix_engine::eligible::Plan;
use mosix_guest::Carried;
use mosix_wire::tls::Tls;
use tokio::sync::Notify;

use super::{judge_process, same_plan};
use crate::cgroups::{Membership, Mounts};
use crate::images;
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

/// A dump that has been sent.
pub(crate) struct Sent {
    pub(crate) since: Instant,
    pub(crate) image_bytes: u64,
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

    /// Freezes, dumps into `dir` and sends the images, unless told to give up. On an error before the sending the process runs.
    pub(crate) async fn dump(self, target: String, stamp: Stamp, dir: PathBuf, give_up: &Notify) -> Result<Sent> {
        let stream = images::open(&self.tls, &target, stamp, self.connect).await?;
        images::make_dir(&dir)?;
        let body = self.clone();
        let into = dir.clone();
        let held = tokio::task::spawn_blocking(move || body.hold(&into)).await?;
        let result = match held {
            Ok(since) => {
                let carried = Carried { max_tid: self.max_tid, unread: Vec::new() };
                let sending = images::send(stream, &dir, carried, self.still_as_planned());
                tokio::select! {
                    sent = sending => sent.map(|image_bytes| Sent { since, image_bytes }),
                    () = give_up.notified() => Err(anyhow!("the move was given up")),
                }
            }
            Err(error) => Err(error),
        };
        keep_log(&dir, result.is_err());
        let _ = std::fs::remove_dir_all(&dir);
        result
    }

    /// The plan was made while the process ran. Now that it cannot run any more, it must still hold, or the copy would lack what was opened
    /// meanwhile. This goes on while the images are on their way.
    async fn still_as_planned(&self) -> Result<()> {
        let (pid, helpers) = (self.plan.pid, self.helpers.clone());
        let (plan, _) = tokio::task::spawn_blocking(move || judge_process(pid, &helpers)).await??;
        if !same_plan(&plan, &self.plan) {
            bail!("it opened or closed something while it was being frozen: try again");
        }
        Ok(())
    }

    fn hold(&self, dir: &std::path::Path) -> Result<Instant> {
        let freezer = Freezer::create(&self.freezer_dir)?;
        freezer.enter(self.pid)?;
        let request = DumpRequest { pid: self.pid, images_dir: dir, external: &self.external, shell_job: self.shell_job };
        match dump_and_hold(&self.criu, &request, &freezer, &self.dump_cgroups, self.deadline) {
            Ok(held) => Ok(held.since),
            Err(error) => {
                self.put_back();
                Err(error.into())
            }
        }
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

/// Copies CRIU's log aside when something went wrong: it is what one needs to find out why.
fn keep_log(dir: &std::path::Path, failed: bool) {
    if failed && let Some(state) = dir.parent() {
        let _ = std::fs::copy(dir.join("dump.log"), state.join("last-failed-dump.log"));
    }
}
