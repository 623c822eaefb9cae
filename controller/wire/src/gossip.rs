//! Sealed datagrams for the load gossip.
//!
//! A datagram is the sender's id (4 bytes), a counter (8 bytes), both little-endian, the payload encrypted with AES-256-GCM
//! under the cluster's key, and its 16-byte tag. The sender's id is authenticated as well; id and counter are the nonce.
//! The counter starts at the clock in microseconds, so that a restarted sender never uses a nonce again (unless it had sent
//! more than a million datagrams a second, or its clock was set back: then its datagrams are refused as old until the
//! clock has caught up).
//!
//! The receiver keeps, for each member, the highest counter and which of the 64 before it were seen: it accepts a
//! datagram once, in any order within that window. Datagrams of ids that are not members are dropped before decryption.
//! A receiver that has just started knows no counters: an old datagram can be replayed to it once. The policy's records
//! carry versions, so such a replay is overruled by the next true record.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::cluster::GossipKey;

/// Largest datagram: fits an Ethernet frame, also through a tunnel.
pub const MAX_DATAGRAM_BYTES: usize = 1400;
/// What sealing adds.
pub const OVERHEAD_BYTES: usize = NONCE_LEN + TAG_BYTES;
/// Largest payload.
pub const MAX_PAYLOAD_BYTES: usize = MAX_DATAGRAM_BYTES - OVERHEAD_BYTES;

const TAG_BYTES: usize = 16;
const ID_BYTES: usize = 4;
/// How far behind the highest counter a datagram may arrive.
const REPLAY_WINDOW: u64 = 64;

/// Why a datagram could not be sealed, or was dropped. Dropping changes no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GossipError {
    /// It does not fit.
    #[error("a payload of {len_bytes} bytes is larger than the {MAX_PAYLOAD_BYTES} of a datagram: send fewer records")]
    TooLarge {
        /// Its length.
        len_bytes: usize,
    },
    /// It is shorter than an empty sealed datagram, or longer than the largest.
    #[error("{len_bytes} bytes cannot be a sealed datagram")]
    Length {
        /// Its length.
        len_bytes: usize,
    },
    /// The sender is not listed.
    #[error("datagram of node {0}, which is not a member: update members.toml here, or find out who sends it")]
    NotMember(u32),
    /// It was not sealed under this cluster's key, or was altered.
    #[error("datagram that claims to be of node {0} is forged or damaged, or that node has another gossip.key")]
    Forged(u32),
    /// It was seen before, or is too old to tell.
    #[error("datagram {counter} of node {sender} is a repeat or too old")]
    Replayed {
        /// Sender.
        sender: u32,
        /// Its counter.
        counter: u64,
    },
    /// All counters are used up, or the library refused the key: cannot happen in practice.
    #[error("cannot seal: {0}")]
    Seal(&'static str),
}

/// Seals what one node sends. There must be only one for a node's id at a time: two would use the same nonces.
#[derive(Debug)]
pub struct Sealer {
    key: LessSafeKey,
    id: u32,
    counter: u64,
}

impl Sealer {
    /// For node `id`; reads the clock once, for the first counter.
    ///
    /// # Errors
    /// [`GossipError::Seal`] if the key is not usable.
    pub fn new(key: &GossipKey, id: u32) -> Result<Self, GossipError> {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::with_counter(key, id, u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX))
    }

    /// As [`Sealer::new`], with a given first counter: for a caller that keeps the last one in a file instead of
    /// trusting the clock. A counter that was used before under the same key and id breaks the encryption.
    ///
    /// # Errors
    /// [`GossipError::Seal`] if the key is not usable.
    pub fn with_counter(key: &GossipKey, id: u32, counter: u64) -> Result<Self, GossipError> {
        Ok(Self { key: aead_key(key)?, id, counter })
    }

    /// Seals one datagram.
    ///
    /// # Errors
    /// [`GossipError::TooLarge`]; [`GossipError::Seal`] after 2^64 datagrams.
    pub fn seal(&mut self, payload: &[u8]) -> Result<Vec<u8>, GossipError> {
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(GossipError::TooLarge { len_bytes: payload.len() });
        }
        let nonce = nonce_bytes(self.id, self.counter);
        // Advanced before use: whatever fails below, this nonce is gone.
        self.counter = self.counter.checked_add(1).ok_or(GossipError::Seal("the counter is exhausted"))?;
        let mut datagram = Vec::with_capacity(OVERHEAD_BYTES + payload.len());
        datagram.extend_from_slice(&nonce);
        datagram.extend_from_slice(payload);
        let (_, body) = datagram.split_at_mut(NONCE_LEN);
        let tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(self.id.to_le_bytes()), body)
            .map_err(|_| GossipError::Seal("the cipher refused"))?;
        datagram.extend_from_slice(tag.as_ref());
        Ok(datagram)
    }
}

/// Opens what the members send.
#[derive(Debug)]
pub struct Opener {
    key: LessSafeKey,
    senders: BTreeMap<u32, Seen>,
}

/// What was seen of one sender.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// Highest accepted counter.
    highest: u64,
    /// Bit `i`: counter `highest - i` was accepted. 0 only before the first datagram.
    recent: u64,
}

impl Opener {
    /// Accepts datagrams of `members` only: leave the own id out, so that own datagrams cannot be reflected.
    ///
    /// # Errors
    /// [`GossipError::Seal`] if the key is not usable.
    pub fn new(key: &GossipKey, members: impl IntoIterator<Item = u32>) -> Result<Self, GossipError> {
        Ok(Self { key: aead_key(key)?, senders: members.into_iter().map(|id| (id, Seen::default())).collect() })
    }

    /// Changes who is accepted. Members that stay keep their replay windows.
    pub fn set_members(&mut self, members: impl IntoIterator<Item = u32>) {
        let old = std::mem::take(&mut self.senders);
        self.senders = members.into_iter().map(|id| (id, old.get(&id).copied().unwrap_or_default())).collect();
    }

    /// Opens one datagram: the sender's id and the payload. Each datagram is accepted once.
    ///
    /// # Errors
    /// Any [`GossipError`] but `TooLarge` and `Seal`; the datagram has then had no effect.
    pub fn open(&mut self, datagram: &[u8]) -> Result<(u32, Vec<u8>), GossipError> {
        let length = GossipError::Length { len_bytes: datagram.len() };
        if datagram.len() < OVERHEAD_BYTES || datagram.len() > MAX_DATAGRAM_BYTES {
            return Err(length);
        }
        let Some((nonce, sealed)) = datagram.split_first_chunk::<NONCE_LEN>() else { return Err(length) };
        let [i0, i1, i2, i3, c0, c1, c2, c3, c4, c5, c6, c7] = *nonce;
        let id_bytes: [u8; ID_BYTES] = [i0, i1, i2, i3];
        let sender = u32::from_le_bytes(id_bytes);
        let counter = u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]);
        let seen = self.senders.get_mut(&sender).ok_or(GossipError::NotMember(sender))?;
        // Only a look: the window changes after the tag was checked, or anybody could close it.
        let next = seen.with(counter).ok_or(GossipError::Replayed { sender, counter })?;
        let mut payload = sealed.to_vec();
        let len_bytes = self
            .key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(id_bytes), &mut payload)
            .map_err(|_| GossipError::Forged(sender))?
            .len();
        payload.truncate(len_bytes);
        *seen = next;
        Ok((sender, payload))
    }
}

impl Seen {
    /// The window after `counter`, or `None` if that was seen or is too old.
    fn with(self, counter: u64) -> Option<Self> {
        if self.recent == 0 {
            return Some(Self { highest: counter, recent: 1 });
        }
        if counter > self.highest {
            let ahead = counter - self.highest;
            let shifted = if ahead >= REPLAY_WINDOW { 0 } else { self.recent << ahead };
            return Some(Self { highest: counter, recent: shifted | 1 });
        }
        let behind = self.highest - counter;
        if behind >= REPLAY_WINDOW || self.recent >> behind & 1 == 1 {
            return None;
        }
        Some(Self { highest: self.highest, recent: self.recent | 1 << behind })
    }
}

fn aead_key(key: &GossipKey) -> Result<LessSafeKey, GossipError> {
    UnboundKey::new(&AES_256_GCM, key.bytes()).map(LessSafeKey::new).map_err(|_| GossipError::Seal("the key has the wrong length"))
}

fn nonce_bytes(id: u32, counter: u64) -> [u8; NONCE_LEN] {
    let [i0, i1, i2, i3] = id.to_le_bytes();
    let [c0, c1, c2, c3, c4, c5, c6, c7] = counter.to_le_bytes();
    [i0, i1, i2, i3, c0, c1, c2, c3, c4, c5, c6, c7]
}
