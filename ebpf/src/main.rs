//! The BPF object. For the host this is an empty program: the crate can then be an ordinary member of the workspace.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod bpf;

/// Says what this is for; the object is compiled for `bpfel-unknown-none` by the build script of `mosix-probe`.
#[cfg(not(target_arch = "bpf"))]
fn main() {
    println!("{} is a BPF program: build it for bpfel-unknown-none", mosix_ebpf::ITER_TASK);
}
