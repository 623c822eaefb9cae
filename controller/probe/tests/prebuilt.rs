//! The checked-in BPF object is what the sources say: rebuilt, it is the same byte for byte.

#[path = "../build/object.rs"]
mod object;

use std::path::Path;

#[test]
fn prebuilt_object_is_fresh_and_reproducible() {
    let workspace = object::workspace(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    let stored = object::prebuilt(&workspace).unwrap();
    let tools = match object::find_tools(&workspace) {
        Ok(tools) => tools,
        Err(why) => return println!("skipped: {why}"),
    };
    // Kept between runs: only the first one has to compile `core`.
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bpf");
    let rebuilt = object::build(&workspace, &tools, &scratch).unwrap();
    assert!(stored == rebuilt, "the object differs from its sources; refresh it: {}", object::REFRESH);
}
