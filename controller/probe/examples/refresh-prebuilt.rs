//! Makes `ebpf/prebuilt` anew from the sources in `ebpf/src`: `cargo run -p mosix-probe --example refresh-prebuilt`.

#[path = "../build/object.rs"]
mod object;

use anyhow::Result;
use std::path::Path;

fn main() -> Result<()> {
    let workspace = object::workspace(Path::new(env!("CARGO_MANIFEST_DIR")))?;
    let tools = object::find_tools(&workspace)?;
    let scratch = tempfile::tempdir()?;
    let bytes = object::build(&workspace, &tools, scratch.path())?;
    object::store_prebuilt(&workspace, &bytes)?;
    println!("ebpf/prebuilt: {} bytes", bytes.len());
    Ok(())
}
