//! Sealed datagrams: what is sealed opens once, and nothing else opens.

#![allow(clippy::unwrap_used)] // A test's helpers, too, may end the test.

use mosix_wire::cluster::GossipKey;
use mosix_wire::gossip::{GossipError, MAX_DATAGRAM_BYTES, MAX_PAYLOAD_BYTES, OVERHEAD_BYTES, Opener, Sealer};
use proptest::prelude::*;

const KEY: [u8; 32] = [7; 32];

fn pair() -> (Sealer, Opener) {
    let key = GossipKey::new(KEY);
    (Sealer::new(&key, 5).unwrap(), Opener::new(&key, [5, 6]).unwrap())
}

proptest! {
    #[test]
    fn a_payload_comes_back_once(payload in prop::collection::vec(any::<u8>(), 0..=MAX_PAYLOAD_BYTES)) {
        let (mut sealer, mut opener) = pair();
        let datagram = sealer.seal(&payload).unwrap();
        prop_assert_eq!(datagram.len(), payload.len() + OVERHEAD_BYTES);
        prop_assert_eq!(opener.open(&datagram).unwrap(), (5, payload));
        let repeated = matches!(opener.open(&datagram), Err(GossipError::Replayed { sender: 5, .. }));
        prop_assert!(repeated);
    }

    #[test]
    fn any_flipped_bit_is_refused(payload in prop::collection::vec(any::<u8>(), 0..100), bit in any::<prop::sample::Index>()) {
        let (mut sealer, mut opener) = pair();
        let mut datagram = sealer.seal(&payload).unwrap();
        let bit = bit.index(datagram.len() * 8);
        datagram[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(opener.open(&datagram).is_err());
        // The forgery closed nothing: the true one still opens.
        datagram[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(opener.open(&datagram).is_ok());
    }

    #[test]
    fn random_bytes_never_open(bytes in prop::collection::vec(any::<u8>(), 0..1500), sender in prop::option::of(5_u32..7)) {
        let (_, mut opener) = pair();
        let mut bytes = bytes;
        if let (Some(sender), true) = (sender, bytes.len() >= 4) {
            bytes[..4].copy_from_slice(&sender.to_le_bytes());
        }
        prop_assert!(opener.open(&bytes).is_err());
    }

    /// Against the plain definition: accepted if never accepted before and above highest - 64.
    #[test]
    fn the_replay_window_is_as_defined(counters in prop::collection::vec(0_u64..200, 1..200)) {
        let key = GossipKey::new(KEY);
        let mut opener = Opener::new(&key, [5]).unwrap();
        let mut accepted = Vec::new();
        for counter in counters {
            let datagram = Sealer::with_counter(&key, 5, counter).unwrap().seal(b"x").unwrap();
            let highest = accepted.iter().max().copied();
            let expected = !accepted.contains(&counter) && highest.is_none_or(|h: u64| counter + 64 > h);
            prop_assert_eq!(opener.open(&datagram).is_ok(), expected, "counter {} highest {:?}", counter, highest);
            if expected {
                accepted.push(counter);
            }
        }
    }
}

#[test]
fn other_keys_and_other_nodes_are_refused() {
    let (mut sealer, mut opener) = pair();
    let datagram = sealer.seal(b"load").unwrap();
    let mut stranger = Opener::new(&GossipKey::new([8; 32]), [5]).unwrap();
    assert_eq!(stranger.open(&datagram), Err(GossipError::Forged(5)));
    opener.set_members([6]);
    assert_eq!(opener.open(&datagram), Err(GossipError::NotMember(5)));
    opener.set_members([5, 6]);
    assert!(opener.open(&datagram).is_ok());
    opener.set_members([5]);
    assert!(matches!(opener.open(&datagram), Err(GossipError::Replayed { .. })), "the window was lost");
}

#[test]
fn a_restarted_sender_is_heard() {
    let key = GossipKey::new(KEY);
    let mut opener = Opener::new(&key, [5]).unwrap();
    for _ in 0..3 {
        let mut sealer = Sealer::new(&key, 5).unwrap();
        for _ in 0..5 {
            opener.open(&sealer.seal(b"x").unwrap()).unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn sizes_are_bounded() {
    let (mut sealer, mut opener) = pair();
    assert_eq!(sealer.seal(&[0; MAX_PAYLOAD_BYTES]).unwrap().len(), MAX_DATAGRAM_BYTES);
    assert!(matches!(sealer.seal(&[0; MAX_PAYLOAD_BYTES + 1]), Err(GossipError::TooLarge { .. })));
    assert!(matches!(opener.open(&[0; MAX_DATAGRAM_BYTES + 1]), Err(GossipError::Length { .. })));
    let key = GossipKey::new(KEY);
    let mut last = Sealer::with_counter(&key, 5, u64::MAX).unwrap();
    assert!(matches!(last.seal(b"x"), Err(GossipError::Seal(_))));
}
