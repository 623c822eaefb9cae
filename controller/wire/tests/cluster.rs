//! The cluster's folder: what is made, with which modes, and what is refused.

#![allow(clippy::unwrap_used)] // A test's helpers, too, may end the test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mosix_wire::cluster::{self, ClusterError};
use proptest::prelude::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_bundle_holds_exactly_what_a_node_needs() {
    let top = tempfile::tempdir().unwrap();
    let dir = top.path().join("cluster");
    cluster::init(&dir).unwrap();
    assert!(cluster::members(&dir).unwrap().is_empty());
    assert_eq!(cluster::add(&dir, "n1", "127.0.0.1:7001").unwrap().id, 1);
    assert_eq!(cluster::add(&dir, "n-2", "[::1]:7001").unwrap().id, 2);
    for secret in ["ca.key", "gossip.key", "n1.key", "n-2.key"] {
        assert_eq!(mode(&dir.join(secret)), 0o600, "{secret}");
    }
    assert_eq!(fs::read(dir.join("gossip.key")).unwrap().len(), 32);

    let out = top.path().join("bundle");
    cluster::bundle(&dir, "n1", &out).unwrap();
    assert_eq!(names(&out), ["ca.pem", "gossip.key", "members.toml", "n1.key", "n1.pem"]);
    assert_eq!(mode(&out.join("n1.key")), 0o600);
    assert_eq!(mode(&out.join("gossip.key")), 0o600);
    let identity = cluster::load(&out, "n1").unwrap();
    assert_eq!((identity.name(), identity.id(), identity.members().len()), ("n1", 1, 2));
    assert_eq!(identity.members().by_id(2).unwrap().name, "n-2");
    assert!(!format!("{identity:?}").to_lowercase().contains("key: "));

    // A second bundle replaces the first; a node of it alone cannot make members.
    cluster::bundle(&dir, "n1", &out).unwrap();
    assert!(matches!(cluster::add(&out, "n3", "127.0.0.1:7003"), Err(ClusterError::Io { .. })));
    assert_eq!(cluster::members(&out).unwrap().len(), 2);
}

#[test]
fn a_cluster_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    cluster::init(dir.path()).unwrap();
    let before = fs::read(dir.path().join("ca.key")).unwrap();
    assert!(matches!(cluster::init(dir.path()), Err(ClusterError::Exists(_))));
    assert_eq!(fs::read(dir.path().join("ca.key")).unwrap(), before);
}

#[test]
fn duplicates_and_bad_input_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    cluster::init(dir).unwrap();
    cluster::add(dir, "n1", "127.0.0.1:7001").unwrap();
    let before = names(dir);
    assert!(matches!(cluster::add(dir, "n1", "127.0.0.1:7002"), Err(ClusterError::Duplicate { what: "name", .. })));
    assert!(matches!(cluster::add(dir, "n2", "127.0.0.1:7001"), Err(ClusterError::Duplicate { what: "address", .. })));
    for name in ["", "N1", "n.1", "n/1", "../n1", "-n", "n-", "12", "1-2", "ca", "gossip", "home", &"n".repeat(64)] {
        assert!(matches!(cluster::add(dir, name, "127.0.0.1:7009"), Err(ClusterError::BadName { .. })), "{name}");
    }
    for address in ["", "n2:7001", "127.0.0.1", "127.0.0.1:0", "0.0.0.0:7001", "[::]:7001", "224.0.0.1:7001"] {
        assert!(matches!(cluster::add(dir, "n2", address), Err(ClusterError::BadAddress(_))), "{address}");
    }
    assert_eq!(names(dir), before);
    assert_eq!(cluster::members(dir).unwrap().len(), 1);
}

#[test]
fn damaged_open_or_missing_files_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    cluster::init(dir).unwrap();
    cluster::add(dir, "n1", "127.0.0.1:7001").unwrap();
    assert!(matches!(cluster::load(dir, "n2"), Err(ClusterError::NotMember { .. })));
    assert!(matches!(cluster::load(dir, "../n1"), Err(ClusterError::BadName { .. })));

    let key = dir.join("n1.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(cluster::load(dir, "n1"), Err(ClusterError::OpenKey { mode: 0o640, .. })));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    fs::write(dir.join("gossip.key"), [0; 31]).unwrap();
    assert!(matches!(cluster::load(dir, "n1"), Err(ClusterError::Damaged { .. })));
    let twice = "[[member]]\nname='a'\nid=1\naddress='127.0.0.1:1'\n[[member]]\nname='b'\nid=1\naddress='127.0.0.1:2'\n";
    for text in ["[[member]]", "x", "[[member]]\nname='n1'\nid=0\naddress='127.0.0.1:1'", twice] {
        fs::write(dir.join("members.toml"), text).unwrap();
        assert!(matches!(cluster::load(dir, "n1"), Err(ClusterError::Damaged { .. })), "{text}");
    }
}

proptest! {
    #[test]
    fn every_accepted_name_is_a_plain_file_and_dns_name(name in "[a-z0-9./_-]{0,70}") {
        if cluster::check_name(&name).is_ok() {
            prop_assert!((1..=63).contains(&name.len()));
            prop_assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
            prop_assert!(rustls_pki_types::ServerName::try_from(name.as_str()).is_ok());
        }
    }

    #[test]
    fn any_members_file_is_read_or_refused(text in ".{0,200}") {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("members.toml"), text).unwrap();
        let _ = cluster::members(dir.path());
    }
}
