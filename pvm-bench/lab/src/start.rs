//! Making a lab, in the order that a crash at any time leaves nothing unnamed: see [`crate::state`].

use std::fs;
use std::io::{PipeReader, PipeWriter, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::sched_getaffinity;
use nix::unistd::{Pid, geteuid};

use crate::cgroup::Hierarchy;
use crate::client::append_to;
use crate::error::{LabError, Result, failed};
use crate::holder::HolderConfig;
use crate::quota::Quota;
use crate::spec::{LabSpec, address, check_id};
use crate::state::{Node, ProcessId, SWITCH, State};

/// Name of the program that holds nodes.
const PROGRAM: &str = "mosix-lab";
/// Longest report of a starting holder, bytes.
const MAX_REPORT_BYTES: u64 = 4096;

/// Checks the wish against the machine and names everything that is to be made. Nothing is made.
pub(crate) fn plan(spec: &LabSpec) -> Result<State> {
    check_id(&spec.id)?;
    let cpus = usable_cpus()?;
    spec.validate(cpus.len())?;
    if !geteuid().is_root() {
        return Err(LabError::NeedRoot);
    }
    let hierarchy = Hierarchy::detect()?;
    let dir = absolute(&spec.lab_dir())?;
    let node = |index: usize, name: String, quota: Quota, relative_speed: f64| Node {
        index,
        ip: address(index + 1),
        cpu: cpus.get(index % cpus.len().max(1)).copied().unwrap_or(0),
        relative_speed,
        quota,
        cgroup: hierarchy.group(&spec.id, &name),
        sys_cgroup: hierarchy.group(&spec.id, &format!("{name}.sys")),
        cgroup_v2_path: hierarchy.unified_path(&spec.id, &name),
        dir: dir.join("nodes").join(&name),
        private_dir: dir.join("private"),
        holder: None,
        name,
    };
    let nodes: Vec<Node> = (spec.quotas()?.into_iter().enumerate())
        .map(|(index, (quota, relative))| node(index, format!("{}{}", spec.name_prefix, index + 1), quota, relative))
        .collect();
    let whole_core = Quota { quota_us: 10_000, period_us: 10_000 };
    let mut switch = node(nodes.len(), SWITCH.into(), whole_core, 1.0);
    switch.cgroup = switch.sys_cgroup.clone();
    let owner = i32::try_from(std::process::id()).ok().and_then(ProcessId::of);
    let owner = owner.ok_or_else(|| LabError::Protocol("cannot find this process in /proc".into()))?;
    Ok(State::new(&spec.id, &dir, owner, hierarchy, nodes, switch))
}

/// Files and groups.
pub(crate) fn make_files(state: &State, spec: &LabSpec, program: &Path) -> Result<()> {
    let hosts: String = state.nodes.iter().map(|node| format!("{} {}\n", node.ip, node.name)).collect();
    let hosts_file = state.dir.join("hosts");
    write(&hosts_file, format!("127.0.0.1 localhost\n{hosts}"))?;
    make_dir(&state.switch.private_dir)?;
    let run_dir = absolute(&spec.run_dir)?;
    let env = [("MOSIX_LAB_RUN_DIR".to_owned(), run_dir.display().to_string()), ("MOSIX_LAB_ID".to_owned(), state.id.clone())];
    write_rsh(state, &run_dir, program)?;
    state.hierarchy.create_parent(&state.id)?;
    for node in state.all() {
        make_dir(&node.dir.join("private"))?;
        write(&node.dir.join("hostname"), format!("{}\n", node.name))?;
        node.cgroup.make_folders()?;
        node.sys_cgroup.make_folders()?;
        if let Some(path) = &node.cgroup_v2_path {
            make_dir(path)?;
        }
        if node.name != SWITCH {
            node.cgroup.set_quota(Some(node.quota))?;
        }
        let config = HolderConfig {
            name: node.name.clone(),
            cpu: node.cpu,
            throttled: node.cgroup.procs_files(),
            unthrottled: node.sys_cgroup.procs_files(),
            hosts: hosts_file.clone(),
            private_dir: node.private_dir.clone(),
            env: env.iter().cloned().chain([("MOSIX_LAB_NODE".to_owned(), node.name.clone())]).collect(),
        };
        let text = serde_json::to_string(&config).map_err(|error| LabError::Protocol(error.to_string()))?;
        write(&node.dir.join(HolderConfig::FILE), text)?;
    }
    Ok(())
}

/// A program that PVM, mpirun and parallel can call as their `rsh`.
fn write_rsh(state: &State, run_dir: &Path, program: &Path) -> Result<()> {
    let quote = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    let script = format!("#!/bin/sh\nexec {} --run-dir {} --id {} rsh \"$@\"\n", quote(program), quote(run_dir), state.id);
    make_dir(&state.dir.join("bin"))?;
    let path = rsh_path(&state.dir);
    write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(failed("making the rsh script executable"))
}

/// Where the lab's rsh is.
pub(crate) fn rsh_path(lab_dir: &Path) -> PathBuf {
    lab_dir.join("bin").join("rsh")
}

/// Starts all holders (nodes and switch) at the same time and waits until all are ready; their pids go into `state`.
pub(crate) fn start_holders(state: &mut State, program: &Path, lifeline: &PipeReader) -> Result<()> {
    let log = append_to(&state.dir.join("holders.log"))?;
    let mut starting = Vec::new();
    for node in state.all() {
        let (from, to) = std::io::pipe().map_err(failed("making a pipe"))?;
        let child = Command::new(program)
            .arg("init")
            .arg(&node.dir)
            .stdin(lifeline.try_clone().map_err(failed("duplicating the life-line"))?)
            .stdout(to)
            .stderr(log.try_clone().map_err(failed("duplicating the log"))?)
            .spawn()
            .map_err(failed(format!("starting {}", program.display())))?;
        starting.push((child, from));
    }
    let mut problem = None;
    let mut found = Vec::new();
    for (mut child, from) in starting {
        let report = read_report(from)?;
        let _ = child.wait();
        let pid = report.lines().find_map(|line| line.strip_prefix("pid ")?.parse().ok());
        if !report.lines().any(|line| line == "ready") {
            problem.get_or_insert(report);
        }
        found.push(pid.and_then(ProcessId::of));
    }
    for (node, holder) in state.nodes.iter_mut().chain([&mut state.switch]).zip(found) {
        node.holder = holder;
    }
    state.save()?;
    if let Some(report) = problem {
        let log = fs::read_to_string(state.dir.join("holders.log")).unwrap_or_default();
        return Err(LabError::Tool { what: "starting a node".into(), output: format!("{} {}", report.trim(), log.trim()) });
    }
    for node in state.all() {
        if let Some(holder) = node.holder {
            node.sys_cgroup.add(holder.pid)?;
        }
    }
    Ok(())
}

fn read_report(from: PipeReader) -> Result<String> {
    let mut report = String::new();
    from.take(MAX_REPORT_BYTES).read_to_string(&mut report).map_err(failed("reading a holder's report"))?;
    Ok(report)
}

/// Lets the holders live on without us: one byte for each, which stays in the pipe until it is read.
pub(crate) fn keep(state: &mut State, mut lifeline: PipeWriter) -> Result<()> {
    use std::io::Write;
    state.keep = true;
    state.save()?;
    let bytes = vec![b'k'; state.nodes.len() + 1];
    lifeline.write_all(&bytes).map_err(failed("telling the nodes to stay"))
}

/// The `mosix-lab` program: given, in the environment, or found by [`crate::find_beside`].
pub(crate) fn find_program(given: Option<&Path>) -> Result<PathBuf> {
    match given.map(Path::to_path_buf).or_else(|| std::env::var_os("MOSIX_LAB_PROGRAM").map(PathBuf::from)) {
        Some(path) => absolute(&path),
        None => crate::find_beside(PROGRAM),
    }
}

/// CPUs this process may use.
fn usable_cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).map_err(failed("reading the usable CPUs"))?;
    Ok((0..nix::sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(failed(format!("finding {}", path.display())))
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(failed(format!("making {}", path.display())))
}

fn write(path: &Path, text: String) -> Result<()> {
    fs::write(path, text).map_err(failed(format!("writing {}", path.display())))
}
