//! Nonsense on every socket of a daemon: it lives on, answers, and moves processes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use mosix_lab::Exec;

use crate::bed::Bed;
use crate::counter::Counter;

/// Sends its standard input to the daemon of `node1`, over TCP or as one UDP datagram, from `node2`.
const SEND: &str = r#"exec 3<>"/dev/$1/node1/7660" && cat >&3"#;

/// The same each time, and never valid.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn on_the_control_socket(bed: &Bed, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(bed.socket(0).unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // It may hang up before it has read all.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn on_the_network(bed: &Bed, protocol: &str, bytes: &[u8]) {
    let (stdin, mut ours) = std::io::pipe().unwrap();
    let exec = Exec::new(["bash", "-c", SEND, "bash", protocol]).throttled(false).stdin(stdin);
    let mut child = bed.node(1).spawn(exec).unwrap();
    let _ = ours.write_all(bytes);
    drop(ours);
    // Its status is the daemon's doing: a broken pipe is fine.
    child.wait_for(Some(Duration::from_secs(20))).unwrap();
}

#[test]
fn lab_a_daemon_survives_nonsense() {
    let Some(bed) = Bed::boot("noise", 2, false) else { return };
    let daemon = bed.daemon(0);
    let wrong = [
        b"\n".to_vec(),
        b"".to_vec(),
        b"{}\n".to_vec(),
        b"{\"request\":\"migrate\",\"pid\":-1,\"target\":\"node2\"}\n".to_vec(),
        b"{\"request\":\"explain\",\"pid\":0}\n".to_vec(),
        b"{\"request\":\"migrate\",\"pid\":99999999999,\"target\":\"\"}\n".to_vec(),
        vec![b'['; 100_000],
        noise(100_000),
    ];
    for bytes in wrong {
        let answer = on_the_control_socket(&bed, &bytes);
        assert!(answer.is_empty() || answer.contains("error"), "{answer}");
    }
    let bash = std::path::Path::new("/bin/bash").exists();
    if !bash {
        println!("skipped: no bash, which sends to the network's ports");
    }
    let dropped = || bed.stats().unwrap()[0].gossip_dropped;
    let before = dropped();
    for length in if bash { &[0, 1, 5, 100, 1400, 20_000][..] } else { &[] } {
        on_the_network(&bed, "tcp", &noise(*length));
        on_the_network(&bed, "udp", &noise((*length).min(1400)));
        // A TLS record's header, then nonsense; and a length of 4 GiB.
        on_the_network(&bed, "tcp", &[&[0x16, 3, 1, 2, 0], noise(*length).as_slice()].concat());
        on_the_network(&bed, "tcp", &[0xff; 64]);
    }
    if bash {
        assert!(dropped() > before, "forged datagrams are counted");
    }
    assert_eq!(bed.daemon(0), daemon);
    assert!(bed.status(0).unwrap().nodes.iter().all(|node| node.state == "up"));
    let counter = Counter::start(&bed, "counter");
    bed.must_move(counter.pid(), "node2");
    counter.assert_one_at(&bed, "node2");
    counter.finish(&bed);
    bed.assert_nothing_left();
}
