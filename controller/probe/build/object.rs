//! Where the BPF object comes from. Shared by the build script, the test that rebuilds the checked-in object, and the
//! example that refreshes it.
//!
//! The object is compiled by an inner cargo with the workspace's own toolchain. `RUSTC_BOOTSTRAP` (for `build-std`) is
//! set for that process only. It is built without debug info and BTF, which would hold absolute paths: so the same
//! sources give the same bytes on every machine, and a test can prove that the checked-in object is what the sources say.

// Each of the three users needs another part of it.
#![allow(dead_code, unreachable_pub)]

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "mosix-bpf.o";
const SUMS: &str = "SHA256SUMS";

/// How to make the checked-in object anew.
pub const REFRESH: &str = "cargo run -p mosix-probe --example refresh-prebuilt";

/// What the inner build needs beside cargo.
pub struct Tools {
    linker_folder: PathBuf,
}

/// The folder that holds the workspace, from the folder of this package.
pub fn workspace(package: &Path) -> Result<PathBuf> {
    let found = package.ancestors().nth(2).context("the package is not two folders below the workspace")?;
    Ok(found.to_path_buf())
}

/// Everything that decides what the object looks like, for `rerun-if-changed`.
pub fn inputs(workspace: &Path) -> Vec<PathBuf> {
    ["ebpf/src", "ebpf/Cargo.toml", "ebpf/prebuilt", "rust-toolchain.toml"].map(|path| workspace.join(path)).into()
}

/// Looks for bpf-linker (PATH, then `.tools/bin` of the workspace) and the sources of `core`. The error says what to do.
pub fn find_tools(workspace: &Path) -> Result<Tools> {
    let path = env::var_os("PATH").unwrap_or_default();
    let linker_folder = env::split_paths(&path)
        .chain([workspace.join(".tools/bin")])
        .find(|folder| folder.join("bpf-linker").is_file())
        .context("bpf-linker is neither on PATH nor in .tools/bin (cargo install bpf-linker --version 0.10.3 --locked)")?;
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "sysroot"]).current_dir(workspace).output().context("cannot run rustc")?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    ensure!(
        sysroot.join("lib/rustlib/src/rust/library/Cargo.lock").is_file(),
        "the toolchain has no sources of its library (rustup component add rust-src)"
    );
    Ok(Tools { linker_folder })
}

/// Compiles the object and returns its bytes. `target_dir` is scratch space of its own, not cargo's.
pub fn build(workspace: &Path, tools: &Tools, target_dir: &Path) -> Result<Vec<u8>> {
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([tools.linker_folder.clone()].into_iter().chain(env::split_paths(&path)))?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace).args(["build", "--quiet", "--release", "-Z", "build-std=core", "--target", TARGET]);
    cargo.args(["--package", "mosix-ebpf", "--bin", "mosix-bpf", "--target-dir"]).arg(target_dir);
    // Whatever the outer build was told about flags and wrappers is not meant for the kernel side.
    for name in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_BUILD_RUSTFLAGS"] {
        cargo.env_remove(name);
    }
    cargo.env("PATH", path).env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", "--cfg=bpf_target_arch=\"x86_64\"");
    cargo.env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    let output = cargo.output().context("cannot start the inner cargo")?;
    if !output.status.success() {
        bail!("the BPF programs do not compile:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    let object = target_dir.join(TARGET).join("release/mosix-bpf");
    fs::read(&object).with_context(|| format!("the inner cargo left no {}", object.display()))
}

/// The checked-in object, if it was made from the sources as they are now.
pub fn prebuilt(workspace: &Path) -> Result<Vec<u8>> {
    let folder = workspace.join("ebpf/prebuilt");
    let sums = fs::read_to_string(folder.join(SUMS)).context("there is no checked-in BPF object")?;
    let object = fs::read(folder.join(OBJECT)).context("there is no checked-in BPF object")?;
    let recorded = |name: &str| {
        let line = sums.lines().find(|line| line.split_whitespace().nth(1) == Some(name));
        line.and_then(|line| line.split_whitespace().next()).unwrap_or_default().to_owned()
    };
    ensure!(recorded(OBJECT) == hex(&object), "the checked-in BPF object is damaged (its hash is not the recorded one)");
    ensure!(recorded("sources") == source_hash(workspace)?, "the checked-in BPF object is stale: the sources in ebpf/ have changed since");
    Ok(object)
}

/// Writes the checked-in object and its hashes.
pub fn store_prebuilt(workspace: &Path, object: &[u8]) -> Result<()> {
    let folder = workspace.join("ebpf/prebuilt");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(OBJECT), object)?;
    let sums = format!("{}  {OBJECT}\n{}  sources\n", hex(object), source_hash(workspace)?);
    fs::write(folder.join(SUMS), sums).context("cannot write the hashes")
}

/// Hash of all that goes into the object: sources, manifest, toolchain, versions of the BPF-side crates.
fn source_hash(workspace: &Path) -> Result<String> {
    let mut files = Vec::new();
    list_files(&workspace.join("ebpf/src"), &mut files)?;
    files.sort();
    files.extend([workspace.join("ebpf/Cargo.toml"), workspace.join("rust-toolchain.toml")]);
    let mut hash = Sha256::new();
    for file in files {
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(workspace)?.to_string_lossy().into_owned();
        hash.update(format!("{name} {}\n", content.len()));
        hash.update(content);
    }
    hash.update(locked_versions(workspace)?);
    Ok(to_hex(&hash.finalize()))
}

/// Names and versions of the `aya-ebpf` crates in the lock file. The rest of it does not reach the object.
fn locked_versions(workspace: &Path) -> Result<String> {
    let lock = fs::read_to_string(workspace.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let packages = lock.split("[[package]]").filter(|package| package.trim_start().starts_with("name = \"aya-ebpf"));
    Ok(packages.flat_map(|package| package.trim_start().lines().take(2)).collect::<Vec<_>>().join("\n"))
}

fn list_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            list_files(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    to_hex(&Sha256::digest(bytes))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
