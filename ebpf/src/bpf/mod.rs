//! Programs that run in the kernel.

mod iter_task;
mod kernel;
mod pids;

/// What the kernel wants to hear before it lends its helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects loops without end, so an object from which this can be reached does not load.
    loop {}
}
