//! The program a home body becomes: a static ELF64 executable built at run time, with one loadable
//! read-and-execute segment and nine bytes of code, `loop { pause() }`.
//!
//! It is built here instead of compiled, so that the daemon carries no second binary, and so that the
//! place of its `syscall` instruction is known: the watcher runs its own calls through it.

/// Where the image is mapped. Above any usual `vm.mmap_min_addr`.
const LOAD_ADDRESS: u64 = 0x40_0000;
const ELF_HEADER_BYTES: u64 = 64;
const PROGRAM_HEADER_BYTES: u64 = 56;
const PROGRAM_HEADERS: u64 = 2;

/// `again: mov eax, 34 (pause); syscall; jmp again`
const CODE: [u8; 9] = [0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];

/// Address of the first instruction of the running stub.
pub const ENTRY: u64 = LOAD_ADDRESS + ELF_HEADER_BYTES + PROGRAM_HEADERS * PROGRAM_HEADER_BYTES;

/// Address of the `syscall` instruction of the running stub.
pub const SYSCALL: u64 = ENTRY + 5;

/// The bytes of the executable, always the same.
pub fn stub_image() -> Vec<u8> {
    let size = ENTRY - LOAD_ADDRESS + CODE.len() as u64;
    let mut image = Vec::with_capacity(size as usize);
    elf_header(&mut image);
    program_header(&mut image, 1, 5, LOAD_ADDRESS, size); // PT_LOAD, readable and executable
    program_header(&mut image, 0x6474_e551, 6, 0, 0); // PT_GNU_STACK, not executable
    image.extend_from_slice(&CODE);
    image
}

fn elf_header(image: &mut Vec<u8>) {
    // 64 bit, little endian, version 1, System V
    image.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    push16(image, &[2, 62]); // ET_EXEC, EM_X86_64
    push32(image, &[1]);
    push64(image, &[ENTRY, ELF_HEADER_BYTES, 0]); // entry, program headers, no section headers
    push32(image, &[0]);
    push16(image, &[ELF_HEADER_BYTES as u16, PROGRAM_HEADER_BYTES as u16, PROGRAM_HEADERS as u16, 64, 0, 0]);
}

fn program_header(image: &mut Vec<u8>, kind: u32, flags: u32, address: u64, size: u64) {
    push32(image, &[kind, flags]);
    push64(image, &[0, address, address, size, size, 0x1000]);
}

fn push16(image: &mut Vec<u8>, values: &[u16]) {
    values.iter().for_each(|v| image.extend_from_slice(&v.to_le_bytes()));
}

fn push32(image: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|v| image.extend_from_slice(&v.to_le_bytes()));
}

fn push64(image: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|v| image.extend_from_slice(&v.to_le_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deputy_image_is_small_and_its_addresses_are_right() {
        let image = stub_image();
        assert!(image.len() < 512, "{} bytes", image.len());
        let at = |address: u64| (address - LOAD_ADDRESS) as usize;
        assert_eq!(image[at(SYSCALL)..][..2], [0x0f, 0x05]);
        assert_eq!(image[at(ENTRY)], 0xb8);
        assert_eq!(image[24..32], ENTRY.to_le_bytes());
    }
}
