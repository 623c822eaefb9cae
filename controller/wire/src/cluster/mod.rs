//! The cluster's folder: who is a member, and the keys that prove it.
//!
//! [`init`] makes a folder with
//!
//! | file | mode | what |
//! |---|---|---|
//! | `ca.pem` | 0644 | certificate of the cluster's authority (ECDSA P-256) |
//! | `ca.key` | 0600 | its key: whoever has it can make members. Keep it on the administrator's machine only |
//! | `gossip.key` | 0600 | 32 random bytes under which load gossip is sealed |
//! | `members.toml` | 0644 | `[[member]]` tables with `name`, `id`, `address` |
//!
//! [`add`] issues `<name>.pem` and `<name>.key` and appends the member. [`bundle`] copies what one node needs (everything
//! but `ca.key` and the other nodes' keys) into a folder of its own, from which that node's daemon [`load`]s its
//! [`Identity`]. A member is revoked by deleting its table from `members.toml` on every node: its certificate stays
//! valid but [`crate::tls`] refuses who is not listed, and gossip under its id is dropped.
//!
//! Certificates do not expire in practice (2020 to 2099): nodes need no synchronised clocks.

mod files;
mod issue;
mod members;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

pub use members::{Member, Members, check_name};

/// File name of the authority's certificate.
pub const CA_CERT: &str = "ca.pem";
/// File name of the authority's key.
pub const CA_KEY: &str = "ca.key";
/// File name of the key under which gossip is sealed.
pub const GOSSIP_KEY: &str = "gossip.key";
/// File name of the list of members.
pub const MEMBERS: &str = "members.toml";

/// What can go wrong with a cluster's folder. None of these leaves a half-made member behind: a call that failed may be
/// repeated once its cause is gone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// The operating system refused a file operation.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// Verb, e.g. `read`.
        action: &'static str,
        /// File or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// [`init`] found files of another cluster.
    #[error("{0} already exists: a cluster lives in this folder. Use another folder, or delete the old cluster first")]
    Exists(PathBuf),
    /// The name cannot be a member's.
    #[error("{name:?} cannot be a node's name: {why}. Use 1 to 63 of a-z, 0-9 and -, at least one letter, no - at either end")]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The address is not `ip:port`.
    #[error("{0:?} is not an address of the form ip:port (e.g. 10.0.0.7:7801), with a real ip and a port above 0")]
    BadAddress(String),
    /// Name, id or address is taken.
    #[error("the {what} {value} is already a member's ({owner}). Choose another one")]
    Duplicate {
        /// `name`, `id` or `address`.
        what: &'static str,
        /// The value that is taken.
        value: String,
        /// The member that has it.
        owner: String,
    },
    /// No such member.
    #[error("{name} is not a member in {path}. Add it on the administrator's machine and copy its new bundle here")]
    NotMember {
        /// The name.
        name: String,
        /// The list.
        path: PathBuf,
    },
    /// A file's content is not what it should be.
    #[error("{path} is damaged: {why}. Copy it again from the administrator's machine")]
    Damaged {
        /// File.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A key file that others can read.
    #[error("{path} can be read by others (mode {mode:03o}): it may be known to them. Run chmod 600 on it, or make new keys")]
    OpenKey {
        /// File.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The certificate could not be made.
    #[error("cannot make a certificate for {name}: {why}")]
    Issue {
        /// For whom.
        name: String,
        /// The library's reason.
        why: String,
    },
}

/// The symmetric key of the gossip. Its `Debug` shows nothing.
#[derive(Clone)]
pub struct GossipKey([u8; 32]);

impl GossipKey {
    /// Wraps 32 random bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GossipKey(hidden)")
    }
}

/// Everything by which one node proves who it is and knows the others. Its `Debug` shows no key.
pub struct Identity {
    name: String,
    id: u32,
    members: Members,
    gossip_key: GossipKey,
    ca: CertificateDer<'static>,
    cert: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// This node's member name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// This node's number, unique in the cluster.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// All members, this node among them.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The key for [`crate::gossip`].
    pub fn gossip_key(&self) -> &GossipKey {
        &self.gossip_key
    }

    pub(crate) fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    pub(crate) fn cert(&self) -> &CertificateDer<'static> {
        &self.cert
    }

    pub(crate) fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("name", &self.name).field("id", &self.id).field("members", &self.members).finish_non_exhaustive()
    }
}

/// Makes a new cluster in `dir` (created if missing): authority, gossip key and an empty list of members.
///
/// # Errors
/// [`ClusterError::Exists`] if `dir` holds any file of a cluster (nothing is changed); [`ClusterError::Io`].
pub fn init(dir: &Path) -> Result<(), ClusterError> {
    files::create_dir(dir)?;
    let _lock = files::lock_dir(dir)?;
    for name in [CA_CERT, CA_KEY, GOSSIP_KEY, MEMBERS] {
        let path = dir.join(name);
        if path.symlink_metadata().is_ok() {
            return Err(ClusterError::Exists(path));
        }
    }
    let authority = issue::new_authority()?;
    let gossip_key = issue::random_key()?;
    files::write(&dir.join(CA_KEY), authority.key_pem.as_bytes(), files::SECRET)?;
    files::write(&dir.join(CA_CERT), authority.cert_pem.as_bytes(), files::PUBLIC)?;
    files::write(&dir.join(GOSSIP_KEY), &gossip_key, files::SECRET)?;
    members::write(&dir.join(MEMBERS), &Members::default())
}

/// Issues a certificate for a new member and lists it. Returns the member with its new id.
///
/// `address` is where its daemon listens, `ip:port`. Needs `ca.key`. The list is written last: if the call fails, the
/// name is not a member, and the call may be repeated.
///
/// # Errors
/// [`ClusterError::BadName`], [`ClusterError::BadAddress`], [`ClusterError::Duplicate`], or what reading and writing
/// the folder gives.
pub fn add(dir: &Path, name: &str, address: &str) -> Result<Member, ClusterError> {
    check_name(name)?;
    let address = parse_address(address)?;
    let _lock = files::lock_dir(dir)?;
    let mut members = members::read(&dir.join(MEMBERS))?;
    let member = Member { name: name.to_owned(), id: members.next_id()?, address };
    members.insert(member.clone())?;
    let ca_key = files::read_secret(&dir.join(CA_KEY))?;
    let issued = issue::member(&ca_key, name)?;
    files::write(&dir.join(format!("{name}.key")), issued.key_pem.as_bytes(), files::SECRET)?;
    files::write(&dir.join(format!("{name}.pem")), issued.cert_pem.as_bytes(), files::PUBLIC)?;
    members::write(&dir.join(MEMBERS), &members)?;
    Ok(member)
}

/// Reads the list of members without any key. For tools that only look.
///
/// # Errors
/// [`ClusterError::Io`] or [`ClusterError::Damaged`].
pub fn members(dir: &Path) -> Result<Members, ClusterError> {
    members::read(&dir.join(MEMBERS))
}

/// Reads what the daemon of member `name` needs.
///
/// # Errors
/// [`ClusterError::NotMember`], [`ClusterError::OpenKey`] if a key can be read by others, [`ClusterError::Damaged`] or
/// [`ClusterError::Io`].
pub fn load(dir: &Path, name: &str) -> Result<Identity, ClusterError> {
    check_name(name)?;
    let members_path = dir.join(MEMBERS);
    let members = members::read(&members_path)?;
    let Some(member) = members.get(name) else {
        return Err(ClusterError::NotMember { name: name.to_owned(), path: members_path });
    };
    let id = member.id;
    let gossip_path = dir.join(GOSSIP_KEY);
    let gossip = files::read_secret(&gossip_path)?;
    let gossip = <[u8; 32]>::try_from(gossip.as_slice())
        .map_err(|_| ClusterError::Damaged { path: gossip_path, why: format!("it should hold 32 bytes but holds {}", gossip.len()) })?;
    let key_path = dir.join(format!("{name}.key"));
    let key = PrivateKeyDer::from_pem_slice(&files::read_secret(&key_path)?)
        .map_err(|e| ClusterError::Damaged { path: key_path, why: e.to_string() })?;
    Ok(Identity {
        name: name.to_owned(),
        id,
        members,
        gossip_key: GossipKey(gossip),
        ca: read_cert(&dir.join(CA_CERT))?,
        cert: read_cert(&dir.join(format!("{name}.pem")))?,
        key,
    })
}

/// Copies what the node `name` needs from `dir` to `out_dir` (created if missing, mode 0700): `ca.pem`, `<name>.pem`,
/// `<name>.key`, `gossip.key` and `members.toml`; not `ca.key`. Files of an older bundle are replaced.
///
/// # Errors
/// As [`load`], which is tried first: a bundle that was made can be loaded.
pub fn bundle(dir: &Path, name: &str, out_dir: &Path) -> Result<(), ClusterError> {
    load(dir, name)?;
    files::create_dir(out_dir)?;
    let cert = format!("{name}.pem");
    for file in [CA_CERT, &cert, MEMBERS] {
        files::write(&out_dir.join(file), &files::read(&dir.join(file))?, files::PUBLIC)?;
    }
    let key = format!("{name}.key");
    for file in [GOSSIP_KEY, &key] {
        files::write(&out_dir.join(file), &files::read_secret(&dir.join(file))?, files::SECRET)?;
    }
    Ok(())
}

fn read_cert(path: &Path) -> Result<CertificateDer<'static>, ClusterError> {
    CertificateDer::from_pem_slice(&files::read(path)?).map_err(|e| ClusterError::Damaged { path: path.to_owned(), why: e.to_string() })
}

/// Other nodes must be able to connect to what is written here: a wildcard address or port 0 is a mistake.
fn parse_address(text: &str) -> Result<SocketAddr, ClusterError> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast() => Ok(address),
        _ => Err(ClusterError::BadAddress(text.to_owned())),
    }
}
