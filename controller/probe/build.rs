//! Puts the BPF object where `include_bytes_aligned!` finds it: `$OUT_DIR/mosix-bpf.o`.
//!
//! In order: `MOSIX_EBPF_OBJECT=/path` is used as it is; the checked-in object if it was made from these very sources
//! (a test proves that it can be rebuilt byte by byte, so nothing is gained by half a minute of compiling); otherwise
//! the programs are compiled. `MOSIX_EBPF_BUILD=1` always compiles. A stale object is never used.

#[path = "build/object.rs"]
mod object;

use anyhow::{Context as _, Result};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without the backtrace that returning it would add.
            println!("cargo::error={}", format!("{error:#}").replace('\n', "\ncargo::error="));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("not run by cargo")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").context("not run by cargo")?);
    let workspace = object::workspace(&package)?;
    for input in object::inputs(&workspace) {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-env-changed=MOSIX_EBPF_OBJECT");
    println!("cargo::rerun-if-env-changed=MOSIX_EBPF_BUILD");
    fs::write(out.join("mosix-bpf.o"), obtain(&workspace, &out)?)?;
    Ok(())
}

fn obtain(workspace: &Path, out: &Path) -> Result<Vec<u8>> {
    if let Some(path) = env::var_os("MOSIX_EBPF_OBJECT") {
        return fs::read(&path).context("cannot read the file that MOSIX_EBPF_OBJECT names");
    }
    let why = match object::prebuilt(workspace) {
        Ok(bytes) if env::var_os("MOSIX_EBPF_BUILD").is_none() => return Ok(bytes),
        Ok(_) => None,
        Err(why) => Some(why),
    };
    let tools = object::find_tools(workspace).with_context(|| match &why {
        Some(why) => format!("{why}, and it cannot be compiled here"),
        None => "MOSIX_EBPF_BUILD is set, but the BPF programs cannot be compiled here".to_owned(),
    })?;
    if let Some(why) = why {
        println!("cargo::warning={why}; compiling it (to refresh: {})", object::REFRESH);
    }
    object::build(workspace, &tools, &out.join("bpf"))
}
