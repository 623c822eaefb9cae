//! The list of members and its file.

use std::net::SocketAddr;
use std::path::Path;

use rustls_pki_types::DnsName;
use serde::{Deserialize, Serialize};

use super::{ClusterError, files};

/// One node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Unique name, also the DNS name in its certificate.
    pub name: String,
    /// Unique number, at least 1; never given to another name while the member is listed.
    pub id: u32,
    /// Where its daemon listens: TCP for TLS, UDP for gossip.
    pub address: SocketAddr,
}

/// All members, ordered by id, with unique names, ids and addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members(Vec<Member>);

/// What is in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MembersFile {
    #[serde(default)]
    member: Vec<Member>,
}

impl Members {
    /// The member of that name.
    pub fn get(&self, name: &str) -> Option<&Member> {
        self.0.iter().find(|m| m.name == name)
    }

    /// The member with that number.
    pub fn by_id(&self, id: u32) -> Option<&Member> {
        self.0.binary_search_by_key(&id, |m| m.id).ok().and_then(|at| self.0.get(at))
    }

    /// The members in the order of their ids.
    pub fn iter(&self) -> std::slice::Iter<'_, Member> {
        self.0.iter()
    }

    /// Number of members.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the cluster has no member yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds one; nothing changes on error.
    ///
    /// # Errors
    /// [`ClusterError::BadName`] or [`ClusterError::Duplicate`].
    pub fn insert(&mut self, member: Member) -> Result<(), ClusterError> {
        check_name(&member.name)?;
        for other in &self.0 {
            let (what, value) = if other.name == member.name {
                ("name", member.name)
            } else if other.id == member.id {
                ("id", member.id.to_string())
            } else if other.address == member.address {
                ("address", member.address.to_string())
            } else {
                continue;
            };
            return Err(ClusterError::Duplicate { what, value, owner: other.name.clone() });
        }
        let at = self.0.partition_point(|m| m.id < member.id);
        self.0.insert(at, member);
        Ok(())
    }

    /// One above the highest: ids of deleted members come back as late as possible.
    pub(super) fn next_id(&self) -> Result<u32, ClusterError> {
        let highest = self.0.last().map_or(0, |m| m.id);
        highest.checked_add(1).ok_or_else(|| ClusterError::Duplicate {
            what: "id",
            value: highest.to_string(),
            owner: "it is the highest possible one".to_owned(),
        })
    }
}

impl<'a> IntoIterator for &'a Members {
    type Item = &'a Member;
    type IntoIter = std::slice::Iter<'a, Member>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Checks that `name` can be a member's: `[a-z0-9-]{1,63}`, a valid DNS label that no one can take for a number, and
/// none of the names that this folder or the command line gives another meaning.
///
/// # Errors
/// [`ClusterError::BadName`] with the reason.
pub fn check_name(name: &str) -> Result<(), ClusterError> {
    let bad = |why| Err(ClusterError::BadName { name: name.chars().take(80).collect(), why });
    if name.is_empty() || name.len() > 63 {
        return bad("its length is wrong");
    }
    if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return bad("it has other characters");
    }
    if name.starts_with('-') || name.ends_with('-') {
        return bad("it starts or ends with -");
    }
    if matches!(name, "ca" | "gossip" | "members" | "home") {
        return bad("the word has another meaning");
    }
    if !name.bytes().any(|b| b.is_ascii_lowercase()) || DnsName::try_from(name).is_err() {
        return bad("it looks like a number");
    }
    Ok(())
}

pub(super) fn read(path: &Path) -> Result<Members, ClusterError> {
    let damaged = |why: String| ClusterError::Damaged { path: path.to_owned(), why };
    let text = String::from_utf8(files::read(path)?).map_err(|_| damaged("it is not text".to_owned()))?;
    let file: MembersFile = toml::from_str(&text).map_err(|e| damaged(e.to_string()))?;
    let mut members = Members::default();
    for member in file.member {
        if member.id == 0 {
            return Err(damaged(format!("{} has the id 0", member.name)));
        }
        members.insert(member).map_err(|e| damaged(e.to_string()))?;
    }
    Ok(members)
}

pub(super) fn write(path: &Path, members: &Members) -> Result<(), ClusterError> {
    let body = toml::to_string(&MembersFile { member: members.0.clone() })
        .map_err(|e| ClusterError::Damaged { path: path.to_owned(), why: e.to_string() })?;
    let text = format!("# Members of this cluster. The same file must be on every node.\n{body}");
    files::write(path, text.as_bytes(), files::PUBLIC)
}
