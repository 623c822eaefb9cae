//! A user's script with twenty children, spread by the balancer while it waits for them.

use std::fs;
use std::path::Path;

use mosix_lab::find_beside;

use crate::bed::{self, Bed};

/// Starts children of two kinds with an output file and an exit status each, then waits for each and checks both.
const SCRIPT: &str = r#"dir=$1 burn=$2 rounds=$3
i=1
while [ $i -le 20 ]; do
    if [ $((i % 2)) = 0 ]; then
        "$burn" --cpu-s 0.4 --no-barrier --exit $i >"$dir/out.$i" &
    else
        awk -v i=$i -v n=$rounds 'BEGIN { s = i; for (k = 0; k < n; k++) s = (s * 31 + k) % 1000003; print s; exit i }' >"$dir/out.$i" &
    fi
    eval "pid$i=$!"
    i=$((i+1))
done
i=1 wrong=0
while [ $i -le 20 ]; do
    eval "wait \$pid$i"
    status=$?
    [ $status = $i ] || { echo "child $i ended with $status"; wrong=1; }
    i=$((i+1))
done
exit $wrong"#;

const ROUNDS: u64 = 1_500_000;

fn expected(child: u64) -> String {
    if child.is_multiple_of(2) {
        return "done\n".into();
    }
    format!("{}\n", (0..ROUNDS).fold(child, |sum, round| (sum * 31 + round) % 1_000_003))
}

#[test]
fn lab_a_script_of_twenty_children_is_balanced_and_all_comes_back_right() {
    let Some(bed) = Bed::boot("balance", 4, true) else { return };
    let rounds = ROUNDS.to_string();
    let out = bed.file("out");
    fs::create_dir(&out).unwrap();
    let complaints = fs::File::create(bed.file("complaints")).unwrap();
    let args = [out.as_path(), &find_beside("burn").unwrap(), Path::new(&rounds)];
    let mut script = bed.start(bed.script("script", SCRIPT, &args).stdout(complaints));
    let status = bed::status(&mut script);
    let complaints = fs::read_to_string(bed.file("complaints")).unwrap();
    assert!(status.success(), "{status}: {complaints}");
    for child in 1..=20 {
        assert_eq!(fs::read_to_string(out.join(format!("out.{child}"))).unwrap(), expected(child), "child {child}");
    }
    let migrations = bed.migrations().unwrap();
    println!("{migrations} migrations");
    assert!(migrations > 0);
    bed.assert_nothing_left();
}
