//! Which control groups a process is in, as folders, so that it can be put back.

use std::path::{Path, PathBuf};

use mosix_criu::freezer::enter_cgroup;

/// The groups of a process in all mounted hierarchies.
#[derive(Debug, Clone, Default)]
pub(crate) struct Membership(Vec<PathBuf>);

impl Membership {
    /// Reads them; hierarchies that are not mounted here are left out.
    pub(crate) fn of(pid: i32) -> Self {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self(parse(&groups, &mounts))
    }

    /// Puts a process back; what cannot be (a group that was removed meanwhile) is told in the log.
    pub(crate) fn restore(&self, pid: i32) {
        for dir in &self.0 {
            if let Err(error) = enter_cgroup(dir, pid) {
                tracing::warn!("{error}");
            }
        }
    }

    /// Only the hierarchies that contain one of `dirs`.
    pub(crate) fn touched_by<'a>(self, dirs: impl Iterator<Item = &'a PathBuf> + Clone, mounts_of: &Mounts) -> Self {
        let touched = |own: &PathBuf| dirs.clone().any(|dir| mounts_of.same(own, dir));
        Self(self.0.into_iter().filter(touched).collect())
    }
}

/// Where hierarchies are mounted.
pub(crate) struct Mounts(Vec<PathBuf>);

impl Mounts {
    pub(crate) fn read() -> Self {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self(text.lines().filter_map(|line| hierarchy(line).map(|(mount, ..)| mount)).collect())
    }

    fn same(&self, a: &Path, b: &Path) -> bool {
        let mount =
            |path: &Path| self.0.iter().filter(|mount| path.starts_with(mount)).max_by_key(|mount| mount.as_os_str().len()).cloned();
        mount(a).is_some_and(|found| Some(found) == mount(b))
    }
}

/// Mount point, root inside the hierarchy, and controllers (empty for v2) of a line of mountinfo.
fn hierarchy(line: &str) -> Option<(PathBuf, PathBuf, Vec<String>)> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ').skip(3);
    let (root, mount) = (PathBuf::from(fields.next()?), PathBuf::from(fields.next()?));
    let mut fields = right.split(' ');
    let kind = fields.next()?;
    let options = fields.nth(1).unwrap_or_default();
    match kind {
        "cgroup2" => Some((mount, root, Vec::new())),
        "cgroup" => Some((mount, root, options.split(',').map(str::to_owned).collect())),
        _ => None,
    }
}

fn parse(groups: &str, mountinfo: &str) -> Vec<PathBuf> {
    let mounts: Vec<_> = mountinfo.lines().filter_map(hierarchy).collect();
    let one = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let wanted: Vec<&str> = controllers.split(',').filter(|name| !name.is_empty()).collect();
        let (mount, root, _) = mounts.iter().find(|(_, _, have)| {
            if wanted.is_empty() { have.is_empty() } else { wanted.iter().all(|name| have.iter().any(|other| other == name)) }
        })?;
        let inside = Path::new(path).strip_prefix(root).ok()?;
        Some(mount.join(inside))
    };
    groups.lines().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "30 29 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                          31 29 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                          32 29 0:28 / /proc rw - proc proc rw\n";

    #[test]
    fn both_versions_are_found() {
        let dirs = parse("3:cpu:/lab/pvn1\n2:memory:/x\n0::/user.slice\n", MOUNTS);
        assert_eq!(dirs, [PathBuf::from("/sys/fs/cgroup/cpu/lab/pvn1"), PathBuf::from("/sys/fs/cgroup/unified/user.slice")]);
    }

    #[test]
    fn only_touched_hierarchies_are_put_back() {
        let mounts = Mounts(vec!["/sys/fs/cgroup/cpu".into(), "/sys/fs/cgroup/unified".into()]);
        let all = Membership(vec!["/sys/fs/cgroup/cpu/a".into(), "/sys/fs/cgroup/unified/b".into()]);
        let touched = [PathBuf::from("/sys/fs/cgroup/unified/mosix/x")];
        assert_eq!(all.touched_by(touched.iter(), &mounts).0, [PathBuf::from("/sys/fs/cgroup/unified/b")]);
    }
}
