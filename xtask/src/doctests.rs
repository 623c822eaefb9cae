//! Runs doc tests, which nextest does not know; only if there are any, for each takes a compiler run.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::junit::Counts;
use crate::workspace::Workspace;

/// Folders that hold no source of ours.
const NOT_SOURCES: [&str; 3] = ["target", ".tools", ".git"];

/// Runs them all and counts; `None` if the workspace has none.
pub(crate) fn run(workspace: &Workspace) -> Result<Option<Counts>> {
    if !any_below(workspace.root()) {
        return Ok(None);
    }
    println!("xtask: doc tests");
    let output = workspace.cargo().args(["test", "--workspace", "--doc"]).output().context("cannot start cargo for the doc tests")?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    let mut counts = count(&text);
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        // They did not compile: there is no line to count.
        counts.failed = counts.failed.max(1);
    }
    Ok(Some(counts))
}

fn any_below(dir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(dir) else { return false };
    entries.flatten().any(|entry| {
        let path = entry.path();
        // Links are not followed: they could lead in a circle.
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir {
            !NOT_SOURCES.iter().any(|name| path.ends_with(name)) && any_below(&path)
        } else {
            path.extension().is_some_and(|extension| extension == "rs") && fs::read_to_string(&path).is_ok_and(|text| has_doc_test(&text))
        }
    })
}

/// Whether a doc comment opens a code block that rustdoc would run.
fn has_doc_test(source: &str) -> bool {
    let mut open = false;
    for line in source.lines() {
        let line = line.trim_start();
        let Some(doc) = line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) else {
            open = false;
            continue;
        };
        let Some(kind) = doc.trim_start().strip_prefix("```") else { continue };
        if !open && matches!(kind.trim(), "" | "rust" | "no_run" | "should_panic" | "compile_fail") {
            return true;
        }
        open = !open;
    }
    false
}

/// Adds up lines such as `test result: ok. 2 passed; 0 failed; 1 ignored; ...`.
fn count(text: &str) -> Counts {
    let mut counts = Counts::default();
    for line in text.lines().filter_map(|line| line.strip_prefix("test result:")) {
        let number =
            |what: &str| line.split([';', '.']).find_map(|part| part.trim().strip_suffix(what)?.trim().parse::<usize>().ok()).unwrap_or(0);
        counts.passed += number("passed");
        counts.failed += number("failed");
        counts.skipped += number("ignored");
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_that_would_run_is_a_doc_test() {
        assert!(has_doc_test("/// Adds.\n/// ```\n/// assert!(true);\n/// ```\n"));
        assert!(has_doc_test("//! ```no_run\n//! x();\n//! ```\n"));
        assert!(!has_doc_test("//! ```text\n//! a picture\n//! ```\n//! words\n"));
        assert!(!has_doc_test("let fence = \"```\"; // ```\n"));
    }

    #[test]
    fn results_of_several_crates_add_up() {
        let text = "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s\n\
                    test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let counts = count(text);
        assert_eq!((counts.passed, counts.failed, counts.skipped), (3, 3, 1));
    }
}
