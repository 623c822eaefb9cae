//! Input and output by pipes whose other ends stay at home, through moves.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use mosix_lab::Child;

use crate::bed::{self, Bed};

struct Piped {
    child: Child,
    stdin: PipeWriter,
    stdout: PipeReader,
    stderr: PipeReader,
}

fn start(bed: &Bed, argv: &[&str]) -> Piped {
    let (theirs_in, stdin) = std::io::pipe().unwrap();
    let (stdout, theirs_out) = std::io::pipe().unwrap();
    let (stderr, theirs_err) = std::io::pipe().unwrap();
    let child =
        bed.start(bed.program("piped", argv.iter().map(Into::into).collect()).stdin(theirs_in).stdout(theirs_out).stderr(theirs_err));
    Piped { child, stdin, stdout, stderr }
}

fn collect(mut from: PipeReader) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        text
    })
}

/// Feeds lines while the process goes around, then the end of file; all must come back.
fn feed_through_moves(name: &str, argv: &[&str], complaint: &str, code: i32) {
    let Some(bed) = Bed::boot(name, 3, false) else { return };
    let Piped { mut child, mut stdin, stdout, stderr } = start(&bed, argv);
    let (stdout, stderr) = (collect(stdout), collect(stderr));
    let moves_done = AtomicBool::new(false);
    let pid = child.pid();
    let fed = thread::scope(|scope| {
        let feeder = scope.spawn(|| {
            let mut fed = String::new();
            // Before, during and after the moves.
            while !moves_done.load(Ordering::Relaxed) || fed.lines().count() < 60 {
                let line = format!("l{}\n", fed.lines().count());
                stdin.write_all(line.as_bytes()).unwrap();
                fed += &line;
                thread::sleep(Duration::from_millis(10));
            }
            drop(stdin);
            fed
        });
        let moves: Vec<_> = ["node2", "node3", "home", "node2"].iter().map(|target| bed.migrate(pid, target)).collect();
        moves_done.store(true, Ordering::Relaxed);
        let fed = feeder.join().unwrap();
        moves.into_iter().for_each(|moved| assert!(moved.is_ok(), "{moved:?}"));
        fed
    });
    assert_eq!(bed::status(&mut child).code(), Some(code));
    assert_eq!(stdout.join().unwrap(), fed);
    assert_eq!(stderr.join().unwrap(), complaint);
    bed.assert_nothing_left();
}

#[test]
fn lab_every_line_comes_back_from_cat() {
    feed_through_moves("cat", &["cat"], "", 0);
}

#[test]
fn lab_every_line_comes_back_from_a_loop_that_reads() {
    let script = r#"while read -r line; do echo "$line"; done; echo over >&2; exit 5"#;
    feed_through_moves("loop", &["sh", "-c", script], "over\n", 5);
}

/// Reads a program's numbers 1, 2, ... LAST, with a pause after each piece, while the program is moved again and again; gives the number of moves.
fn read_through_moves(name: &str, argv: &[&str], pause: Duration, last: u32) -> Option<u32> {
    let bed = Bed::boot(name, 3, false)?;
    let Piped { mut child, mut stdout, .. } = start(&bed, argv);
    let pid = child.pid();
    let over = AtomicBool::new(false);
    let (text, moves) = thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let mut moves = 0;
            for target in ["node2", "node3", "home"].iter().cycle() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                // It may stay: a hop waits for a reader that is behind.
                moves += u32::from(bed.migrate(pid, target).is_ok());
                thread::sleep(Duration::from_millis(200));
            }
            moves
        });
        let mut text = Vec::new();
        let mut buffer = vec![0; 32 << 10];
        loop {
            match stdout.read(&mut buffer).unwrap() {
                0 => break,
                count => text.extend_from_slice(&buffer[..count]),
            }
            thread::sleep(pause);
        }
        over.store(true, Ordering::Relaxed);
        (text, mover.join().unwrap())
    });
    let expected: String = (1..=last).map(|number| format!("{number}\n")).collect();
    println!("{} bytes, {moves} moves", text.len());
    assert_eq!(text.len(), expected.len());
    assert!(text == expected.as_bytes(), "same length, other bytes");
    assert!(bed::status(&mut child).success());
    bed.assert_nothing_left();
    Some(moves)
}

#[test]
fn lab_a_flood_of_output_is_complete_for_a_slow_reader() {
    const LAST: u32 = 600_000;
    if let Some(moves) = read_through_moves("flood", &["seq", "1", &LAST.to_string()], Duration::from_millis(10), LAST) {
        assert!(moves > 0, "it never moved");
    }
}

#[test]
fn lab_output_is_complete_while_its_writer_hops_around() {
    const SCRIPT: &str = "BEGIN { for (k = 1; k <= n; k++) { for (j = 0; j < 20; j++) s += j; print k } }";
    const LAST: u32 = 400_000;
    let count = format!("n={LAST}");
    if let Some(moves) = read_through_moves("writer", &["awk", "-v", &count, SCRIPT], Duration::from_millis(1), LAST) {
        assert!(moves > 1, "it never went from node to node");
    }
}
