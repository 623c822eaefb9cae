//! Frames over in-memory streams: round trips, bounds, damage, cancellation.

#![allow(clippy::unwrap_used)] // A test's helpers, too, may end the test.

use std::time::Duration;

use mosix_wire::frame::{self, FrameError, FrameReader};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWriteExt, duplex};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Message {
    Nothing,
    Text(String),
    Pairs(Vec<(u32, f64)>),
    Chunk { len: u64 },
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn read_all(bytes: &[u8], max_bytes: usize) -> Result<Message, FrameError> {
    let mut reader = bytes;
    frame::read_frame(&mut reader, max_bytes).await
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        Just(Message::Nothing),
        ".{0,40}".prop_map(Message::Text),
        prop::collection::vec((any::<u32>(), -1e9..1e9), 0..20).prop_map(Message::Pairs),
        any::<u64>().prop_map(|len| Message::Chunk { len }),
    ]
}

proptest! {
    #[test]
    fn messages_come_back(messages in prop::collection::vec(message(), 1..8)) {
        block_on(async {
            let mut wire = Vec::new();
            for m in &messages {
                frame::write_frame(&mut wire, m).await.unwrap();
            }
            let mut reader = wire.as_slice();
            for m in &messages {
                assert_eq!(&frame::read_frame::<Message>(&mut reader, 4096).await.unwrap(), m);
            }
            assert!(matches!(frame::read_frame::<Message>(&mut reader, 4096).await, Err(FrameError::Closed)));
        });
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), max in 0_usize..300) {
        block_on(async {
            let _ = read_all(&bytes, max).await;
            let mut buffer = Vec::new();
            let mut reader = bytes.as_slice();
            if let Ok(len) = frame::read_bytes_into(&mut reader, &mut buffer, max).await {
                assert!(len <= max && len == buffer.len());
            }
            let (mut near, mut far) = duplex(1024);
            far.write_all(&bytes).await.unwrap();
            far.shutdown().await.unwrap();
            assert!(frame::exchange_hello(&mut near, true).await.is_err());
        });
    }

    #[test]
    fn every_cut_is_told(m in message(), cut in any::<prop::sample::Index>()) {
        block_on(async {
            let mut wire = Vec::new();
            frame::write_frame(&mut wire, &m).await.unwrap();
            let cut = cut.index(wire.len());
            match read_all(&wire[..cut], 4096).await {
                Err(FrameError::Closed) => assert_eq!(cut, 0),
                Err(FrameError::Truncated { .. }) => assert!(cut > 0),
                other => panic!("{other:?}"),
            }
        });
    }
}

#[test]
fn a_lying_length_costs_nothing() {
    block_on(async {
        let huge = u32::MAX.to_le_bytes();
        assert!(matches!(read_all(&huge, usize::MAX).await, Err(FrameError::Oversize { max_bytes: frame::MAX_FRAME_BYTES, .. })));
        let mut buffer = Vec::new();
        let mut claims = (32_u32 << 20).to_le_bytes().to_vec();
        claims.extend_from_slice(&[7; 100]);
        let mut reader = claims.as_slice();
        let result = frame::read_bytes_into(&mut reader, &mut buffer, 64 << 20).await;
        assert!(matches!(result, Err(FrameError::Truncated { have_bytes: 100, want_bytes: 33_554_432 })));
        assert!(buffer.capacity() <= 64 << 10, "{}", buffer.capacity());
    });
}

#[test]
fn left_over_bytes_are_malformed() {
    block_on(async {
        let mut wire = Vec::new();
        frame::write_bytes(&mut wire, &[0, 1, 2]).await.unwrap();
        assert!(matches!(read_all(&wire, 100).await, Err(FrameError::Malformed { len_bytes: 3, .. })));
    });
}

#[test]
fn chunks_follow_messages_and_reuse_their_buffer() {
    block_on(async {
        let (mut near, mut far) = duplex(10_000);
        let chunk: Vec<u8> = (0..frame::CHUNK_BYTES).map(|i| (i % 251) as u8).collect();
        let sent = chunk.clone();
        let writer = tokio::spawn(async move {
            for _ in 0..3 {
                frame::write_frame(&mut near, &Message::Chunk { len: sent.len() as u64 }).await.unwrap();
                frame::write_bytes(&mut near, &sent).await.unwrap();
            }
            frame::write_bytes(&mut near, &[]).await.unwrap();
        });
        let mut buffer = Vec::new();
        let mut frames = FrameReader::new();
        let mut place = None;
        for _ in 0..3 {
            let announced: Message = frames.read(&mut far, 100).await.unwrap();
            assert_eq!(announced, Message::Chunk { len: chunk.len() as u64 });
            frame::read_bytes_into(&mut far, &mut buffer, frame::CHUNK_BYTES).await.unwrap();
            assert!(buffer == chunk);
            assert_eq!(*place.get_or_insert(buffer.as_ptr()), buffer.as_ptr(), "the buffer was allocated anew");
            assert!(buffer.capacity() <= frame::CHUNK_BYTES);
        }
        assert_eq!(frame::read_bytes_into(&mut far, &mut buffer, 0).await.unwrap(), 0);
        writer.await.unwrap();
    });
}

#[test]
fn a_cancelled_reader_goes_on() {
    block_on(async {
        let (mut near, mut far) = duplex(1000);
        let mut wire = Vec::new();
        let message = Message::Text("slowly".to_owned());
        frame::write_frame(&mut wire, &message).await.unwrap();
        let mut frames = FrameReader::new();
        let (last, first) = wire.split_last().unwrap();
        for byte in first {
            near.write_all(&[*byte]).await.unwrap();
            let read = frames.read::<Message>(&mut far, 100);
            assert!(tokio::time::timeout(Duration::from_millis(1), read).await.is_err(), "complete too early");
        }
        near.write_all(&[*last]).await.unwrap();
        assert_eq!(frames.read::<Message>(&mut far, 100).await.unwrap(), message);
    });
}

#[test]
fn hellos_are_compared() {
    async fn against(theirs: &[u8]) -> Result<(), FrameError> {
        let (mut near, mut far) = duplex(100);
        far.write_all(theirs).await.unwrap();
        frame::exchange_hello(&mut near, true).await
    }
    block_on(async {
        let (mut near, mut far) = duplex(100);
        let (a, b) = tokio::join!(frame::exchange_hello(&mut near, true), frame::exchange_hello(&mut far, false));
        assert!(matches!(a, Err(FrameError::Refused)));
        assert!(b.is_ok());
        assert!(against(b"\x93MOSIX\x01\x00\x01").await.is_ok());
        assert!(matches!(against(b"\x93MOSIX\x07\x00\x01").await, Err(FrameError::Version { theirs: 7, ours: 1 })));
        assert!(matches!(against(b"SSH-2.0-O").await, Err(FrameError::NotMosix)));
    });
}
