//! The other system-call tables of this kernel.

/// Whether programs of the x32 ABI (64-bit registers, 32-bit pointers) run here: few kernels of today are built for them.
#[cfg(target_arch = "x86_64")]
#[must_use]
pub fn has_x32() -> bool {
    /// In the number of every call of the x32 ABI.
    const X32: libc::c_long = 0x4000_0000;
    // SAFETY: getpid takes nothing and changes nothing; a kernel without x32 answers ENOSYS.
    unsafe { libc::syscall(X32 | libc::SYS_getpid) > 0 }
}

/// Whether programs of the x32 ABI run here: no other architecture has it.
#[cfg(not(target_arch = "x86_64"))]
#[must_use]
pub fn has_x32() -> bool {
    false
}
