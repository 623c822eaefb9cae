//! Reading kernel memory.
//!
//! Two ways. [`load`] follows a pointer whose type the verifier knows (it came from the context or from another
//! `load`): one instruction, checked when the program is loaded, safe against faults. [`read`] asks a helper to copy
//! from any address: slower, used where the verifier's typing ends (array elements, per-CPU counters).

use aya_ebpf::{Global, helpers::generated::bpf_probe_read_kernel};
use mosix_ebpf::Offsets;

/// Filled by user space before the object is loaded, read-only after.
#[unsafe(no_mangle)]
pub(super) static OFFSETS: Global<Offsets> = Global::new(ZERO);

// SAFETY: `Offsets` consists of integers, for which zero is a valid value.
const ZERO: Offsets = unsafe { core::mem::zeroed() };

/// Reads one offset. Reading the whole struct would copy it to the 512-byte stack.
macro_rules! off {
    ($field:ident) => {{
        let offsets = core::ptr::addr_of!($crate::bpf::kernel::OFFSETS).cast::<mosix_ebpf::Offsets>();
        // SAFETY: `Global` is a transparent wrapper of `Offsets`, which lives in read-only data. Volatile, because
        // the value that counts is the one that user space puts there, not the one the compiler sees.
        unsafe { core::ptr::read_volatile(core::ptr::addr_of!((*offsets).$field)) }
    }};
}
pub(super) use off;

/// A kernel object whose type the verifier tracks.
pub(super) type Object = *const u8;

/// Loads a field through a pointer that the verifier knows.
#[inline(always)]
pub(super) fn load<T: Copy>(object: Object, offset: u32) -> T {
    // SAFETY: the verifier accepts this only if `object` has a known kernel type with a field of this size at this
    // offset; the kernel catches faults of such loads and returns zero.
    unsafe { core::ptr::read_volatile(object.wrapping_add(offset as usize).cast::<T>()) }
}

/// Copies a value from any kernel address; zero if that cannot be read.
#[inline(always)]
pub(super) fn read<T: Copy + Default>(object: Object, offset: u32) -> T {
    let mut value = T::default();
    read_into(&mut value, object, offset);
    value
}

/// Like [`read`], in place.
#[inline(always)]
pub(super) fn read_into<T: Copy>(value: &mut T, object: Object, offset: u32) {
    let to = core::ptr::from_mut(value).cast();
    let from = object.wrapping_add(offset as usize).cast();
    // SAFETY: `to` has room for a `T`; the helper checks `from` and zeroes the target on failure.
    let _zeroed_on_failure = unsafe { bpf_probe_read_kernel(to, size_of::<T>() as u32, from) };
}
