//! Connections over real loopback TCP: members talk, nobody else does.

#![allow(clippy::unwrap_used)] // A test's helpers, too, may end the test.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use mosix_wire::blocking::BlockingStream;
use mosix_wire::cluster;
use mosix_wire::frame;
use mosix_wire::tls::{PeerName, Stream, Tls, TlsError};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

const LIMIT: Duration = Duration::from_secs(20);

/// A cluster of n1, n2, n3 where n1 listens at the returned listener.
async fn cluster_of_three(dir: &Path) -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    cluster::init(dir).unwrap();
    cluster::add(dir, "n1", &listener.local_addr().unwrap().to_string()).unwrap();
    cluster::add(dir, "n2", "127.0.0.1:2").unwrap();
    cluster::add(dir, "n3", "127.0.0.1:3").unwrap();
    listener
}

fn tls(dir: &Path, name: &str) -> Tls {
    Tls::new(&cluster::load(dir, name).unwrap()).unwrap()
}

async fn accept(listener: &TcpListener, tls: &Tls) -> Result<(Stream, PeerName), TlsError> {
    let (tcp, _) = listener.accept().await.unwrap();
    tls.accept(tcp, LIMIT).await
}

/// Takes a member out of the list of `dir`, as an administrator would.
fn revoke(dir: &Path, name: &str) {
    let path = dir.join("members.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let kept: Vec<_> = text.split("[[member]]").filter(|part| !part.contains(&format!("\"{name}\""))).collect();
    std::fs::write(&path, kept.join("[[member]]")).unwrap();
}

#[tokio::test]
async fn members_talk_and_know_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let listener = cluster_of_three(dir.path()).await;
    let (server, client) = (tls(dir.path(), "n1"), tls(dir.path(), "n2"));
    // Twice: the second connection resumes the session and must be checked just the same.
    for round in 0..2_u32 {
        let (accepted, connected) = tokio::join!(accept(&listener, &server), client.connect("n1", LIMIT));
        let (mut near, peer) = accepted.unwrap();
        let mut far = connected.unwrap();
        assert_eq!((peer.name.as_str(), peer.id), ("n2", 2));
        let chunk = vec![round as u8; frame::CHUNK_BYTES];
        let send = async {
            frame::write_frame(&mut far, &round).await.unwrap();
            frame::write_bytes(&mut far, &chunk).await.unwrap();
            frame::read_frame::<String>(&mut far, 100).await.unwrap()
        };
        let receive = async {
            let mut buffer = Vec::new();
            let number: u32 = frame::read_frame(&mut near, 100).await.unwrap();
            frame::read_bytes_into(&mut near, &mut buffer, frame::CHUNK_BYTES).await.unwrap();
            assert_eq!((number, buffer.len()), (round, frame::CHUNK_BYTES));
            frame::write_frame(&mut near, "got it").await.unwrap();
            near
        };
        let (answer, _near) = tokio::join!(send, receive);
        assert_eq!(answer, "got it");
    }
}

#[tokio::test]
async fn another_authority_is_refused_by_both_sides() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let listener = cluster_of_three(dir.path()).await;
    let _other = cluster_of_three(other.path()).await;
    let (server, client) = (tls(dir.path(), "n1"), tls(other.path(), "n2"));
    let connect = async {
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.connect_over(tcp, "n1", LIMIT).await
    };
    let (accepted, connected) = tokio::join!(accept(&listener, &server), connect);
    assert!(matches!(accepted, Err(TlsError::Handshake { .. })), "{accepted:?}");
    assert!(matches!(connected, Err(TlsError::Handshake { .. })), "{connected:?}");
}

/// The client here trusts the server's authority but has its certificate from another one.
#[tokio::test]
async fn a_client_of_another_authority_is_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let listener = cluster_of_three(dir.path()).await;
    let _other = cluster_of_three(other.path()).await;
    std::fs::copy(other.path().join("n2.pem"), dir.path().join("n2.pem")).unwrap();
    std::fs::copy(other.path().join("n2.key"), dir.path().join("n2.key")).unwrap();
    let (server, client) = (tls(dir.path(), "n1"), tls(dir.path(), "n2"));
    let (accepted, connected) = tokio::join!(accept(&listener, &server), client.connect("n1", LIMIT));
    assert!(matches!(accepted, Err(TlsError::Handshake { .. })), "{accepted:?}");
    assert!(matches!(connected, Err(TlsError::Handshake { .. })), "{connected:?}");
}

#[tokio::test]
async fn a_revoked_member_is_refused_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let listener = cluster_of_three(dir.path()).await;
    let (before, client) = (tls(dir.path(), "n1"), tls(dir.path(), "n3"));
    let (accepted, connected) = tokio::join!(accept(&listener, &before), client.connect("n1", LIMIT));
    assert!(accepted.is_ok() && connected.is_ok());
    revoke(dir.path(), "n3");
    let after = tls(dir.path(), "n1");
    let (accepted, connected) = tokio::join!(accept(&listener, &after), client.connect("n1", LIMIT));
    assert!(matches!(accepted, Err(TlsError::Stranger(name)) if name == "n3"));
    assert!(matches!(connected, Err(TlsError::Hello { source: frame::FrameError::Refused, .. })), "{connected:?}");
}

#[tokio::test]
async fn the_wrong_member_at_the_address_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let listener = cluster_of_three(dir.path()).await;
    // n3 answers at n1's address.
    let (server, client) = (tls(dir.path(), "n3"), tls(dir.path(), "n2"));
    let (accepted, connected) = tokio::join!(accept(&listener, &server), client.connect("n1", LIMIT));
    assert!(accepted.is_err());
    assert!(matches!(connected, Err(TlsError::Handshake { .. })), "{connected:?}");
    let unknown = client.connect("n9", LIMIT).await;
    assert!(matches!(unknown, Err(TlsError::NoSuchMember(_))));
}

#[tokio::test]
async fn silence_garbage_and_closed_ports_end_in_errors() {
    let dir = tempfile::tempdir().unwrap();
    let listener = cluster_of_three(dir.path()).await;
    let server = tls(dir.path(), "n1");
    let address = listener.local_addr().unwrap();

    let silent = TcpStream::connect(address).await.unwrap();
    let (tcp, _) = listener.accept().await.unwrap();
    assert!(matches!(server.accept(tcp, Duration::from_millis(50)).await, Err(TlsError::Timeout { .. })));
    drop(silent);

    let mut noisy = TcpStream::connect(address).await.unwrap();
    noisy.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    assert!(matches!(accept(&listener, &server).await, Err(TlsError::Handshake { .. })));

    drop(listener);
    let client = tls(dir.path(), "n2");
    assert!(matches!(client.connect("n1", LIMIT).await, Err(TlsError::Unreachable { .. })));
}

/// Two ends of one connection, handed over to blocking threads.
async fn blocking_pair(dir: &Path) -> (BlockingStream, BlockingStream) {
    let listener = cluster_of_three(dir).await;
    let (server, client) = (tls(dir, "n1"), tls(dir, "n2"));
    let (accepted, connected) = tokio::join!(accept(&listener, &server), client.connect("n1", LIMIT));
    (BlockingStream::new(accepted.unwrap().0, LIMIT).unwrap(), BlockingStream::new(connected.unwrap(), LIMIT).unwrap())
}

#[tokio::test]
async fn a_connection_goes_on_in_blocking_threads() {
    let dir = tempfile::tempdir().unwrap();
    let (mut near, mut far) = blocking_pair(dir.path()).await;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let expected = sent.clone();
    let sender = std::thread::spawn(move || {
        far.write_all(&sent).unwrap();
        far.flush().unwrap();
        let mut answer = [0; 2];
        far.read_exact(&mut answer).unwrap();
        far.finish().unwrap();
        answer
    });
    let receiver = std::thread::spawn(move || {
        let mut got = vec![0; expected.len()];
        near.read_exact(&mut got).unwrap();
        assert!(got == expected);
        near.write_all(b"ok").unwrap();
        near.finish().unwrap();
    });
    assert_eq!(sender.join().unwrap(), *b"ok");
    receiver.join().unwrap();
}

#[tokio::test]
async fn a_blocking_connection_can_be_cut_from_outside() {
    let dir = tempfile::tempdir().unwrap();
    let (mut near, far) = blocking_pair(dir.path()).await;
    let breaker = near.breaker().unwrap();
    let reader = std::thread::spawn(move || near.read(&mut [0; 16]).map_or(0, |count| count));
    breaker.cut();
    assert_eq!(reader.join().unwrap(), 0);
    assert!(far.finish().is_err(), "the other end must not take a cut for an orderly end");
}
