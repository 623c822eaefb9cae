//! A lab that is up.

use std::io::PipeWriter;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::clean;
use crate::error::{Result, failed};
use crate::lock::{self, LabLock};
use crate::network;
use crate::spec::LabSpec;
use crate::start;
use crate::state::{Node, State};
use crate::usage::UsageSnapshot;

/// A running lab. The one made by [`Lab::up`] goes down when dropped (unless it is kept), the one from [`Lab::attach`] does not.
#[derive(Debug)]
pub struct Lab {
    state: State,
    /// Taken by `down`; a mutex, so that it may be called from any thread.
    owned: Mutex<Option<Owned>>,
}

/// What an owner holds.
#[derive(Debug)]
struct Owned {
    lock: LabLock,
    lifeline: Option<PipeWriter>,
}

impl Lab {
    /// Starts a lab; 16 nodes take about a second. Remains of a crashed lab of the same id are removed first.
    ///
    /// # Errors
    /// Without root, without a cpu controller, for an impossible `spec`, if the id is in use, or if a step fails; then
    /// everything made so far has been removed.
    pub fn up(spec: &LabSpec) -> Result<Self> {
        let state = start::plan(spec)?;
        let program = start::find_program(spec.lab_program.as_deref())?;
        let mut lock = LabLock::try_take(&spec.id)?.ok_or_else(|| lock::busy(&spec.id, "its owner runs"))?;
        clean::make_room(&spec.id, &state.dir, &state.hierarchy)?;
        std::fs::create_dir_all(&state.dir).map_err(failed(format!("making {}", state.dir.display())))?;
        lock.record(&state.dir)?;
        state.save()?;
        let (reader, writer) = std::io::pipe().map_err(failed("making the life-line"))?;
        let owned = Owned { lock, lifeline: Some(writer) };
        let mut lab = Self { state, owned: Mutex::new(Some(owned)) };
        // From here on, an error drops `lab`, which takes down what was made.
        start::make_files(&lab.state, spec, &program)?;
        start::start_holders(&mut lab.state, &program, &reader)?;
        drop(reader);
        network::connect(&lab.state)?;
        if spec.keep {
            lab.keep()?;
        }
        Ok(lab)
    }

    /// Uses a lab that someone else runs, or that was kept.
    ///
    /// # Errors
    /// [`crate::LabError::NotUp`] if there is none in `lab_dir`.
    pub fn attach(lab_dir: &Path) -> Result<Self> {
        let lab_dir = std::path::absolute(lab_dir).map_err(failed(format!("finding {}", lab_dir.display())))?;
        Ok(Self { state: State::load(&lab_dir)?, owned: Mutex::new(None) })
    }

    /// Takes down the lab `id` (usually in `lab_dir`), whoever runs it. `false` if there was none.
    ///
    /// # Errors
    /// If something could not be removed.
    pub fn take_down(id: &str, lab_dir: &Path) -> Result<bool> {
        crate::spec::check_id(id)?;
        clean::take_down(id, lab_dir)
    }

    /// Lets the lab outlive this value and this process.
    fn keep(&mut self) -> Result<()> {
        let owned = self.owned.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(lifeline) = owned.as_mut().and_then(|owned| owned.lifeline.take()) {
            start::keep(&mut self.state, lifeline)?;
        }
        *owned = None;
        Ok(())
    }

    /// Takes the lab down: kills its nodes with all that runs in them, removes groups, files and the lock. Safe to call
    /// twice, and from any thread. Does nothing on an attached or kept lab (see [`Self::take_down`]).
    ///
    /// # Errors
    /// If something could not be removed; the next `up` of the same id will try again.
    pub fn down(&self) -> Result<()> {
        let mut owned = self.owned.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(mut mine) = owned.take() else { return Ok(()) };
        // The life-line first: it also ends a holder that was started but not yet written down.
        drop(mine.lifeline.take());
        clean::remove(&self.state)?;
        mine.lock.forget();
        Ok(())
    }

    /// The nodes, in order; `node1` is the first.
    pub fn nodes(&self) -> &[Node] {
        &self.state.nodes
    }

    /// The node of this name or address, or the `switch`.
    ///
    /// # Errors
    /// [`crate::LabError::NoSuchNode`].
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.state.find(name)
    }

    /// The lab's id.
    pub fn id(&self) -> &str {
        &self.state.id
    }

    /// The lab's folder; removed with the lab.
    pub fn dir(&self) -> &Path {
        &self.state.dir
    }

    /// A program that takes the arguments of rsh and ssh and runs commands in nodes of this lab, with the caller's
    /// environment; for PVM_RSH, `mpirun --mca plm_rsh_agent`, `parallel --ssh`.
    pub fn rsh_program(&self) -> PathBuf {
        start::rsh_path(&self.state.dir)
    }

    /// Whether pid 1 of every node and of the switch lives.
    pub fn is_healthy(&self) -> bool {
        self.state.all().all(|node| node.holder.is_some_and(|holder| holder.is_alive()))
    }

    /// Switches all nodes' speed limits on or off. Start programs with them off, then measure with them on.
    ///
    /// # Errors
    /// If a group cannot be written.
    pub fn set_quota(&self, on: bool) -> Result<()> {
        self.state.nodes.iter().try_for_each(|node| node.cgroup.set_quota(on.then_some(node.quota)))
    }

    /// Cuts a node's link to all others, or restores it.
    ///
    /// # Errors
    /// If the node is not up, or `ip` fails.
    pub fn set_link(&self, node: &Node, up: bool) -> Result<()> {
        network::set_link(&self.state, node, up)
    }

    /// CPU time used inside the quota of a node since the lab is up.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn usage(&self, node: &Node) -> Result<Duration> {
        node.cgroup.usage()
    }

    /// CPU time used outside the quota of a node (daemons) since the lab is up.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn sys_usage(&self, node: &Node) -> Result<Duration> {
        node.sys_cgroup.usage()
    }

    /// The usage of all nodes now; two of them give the entitlement of the time between.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn snapshot(&self) -> Result<UsageSnapshot> {
        UsageSnapshot::take(&self.state.nodes)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.down() {
            // A destructor has nobody to return an error to, and this one must not get lost.
            eprintln!("mosix-lab: taking down lab {}: {error}", self.state.id);
        }
    }
}
