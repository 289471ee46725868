//! What the C library's allocator keeps for itself: a daemon that was busy once must not stay large.

/// Size above which a block is a mapping of its own and goes back to Linux when it is freed, bytes.
const MMAP_THRESHOLD: libc::c_int = 256 << 10;
/// Pools of memory that threads share; glibc's own choice is eight for each core.
const ARENAS: libc::c_int = 2;

/// Sets the allocator up for a daemon. To be called once, before there is a second thread.
pub fn set_up() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers and may be called while there is one thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD);
    }
}

/// Gives memory that nothing uses back to Linux. Takes milliseconds at most; to be called now and then.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim only looks at the allocator's own lists, under its locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
        text.split(' ')
            .nth(1)
            .and_then(|pages| pages.parse().ok())
            .expect("pages")
    }

    #[test]
    fn what_was_freed_goes_back_to_linux() {
        set_up();
        let mut blocks: Vec<Vec<u8>> = (0..20_000).map(|_| vec![1; 4096]).collect();
        let full = resident();
        // One in a hundred stays and keeps the heap from shrinking at its end.
        let mut index = 0;
        blocks.retain(|_| {
            index += 1;
            index % 100 == 0
        });
        trim();
        let pages = full.saturating_sub(resident());
        assert!(pages > 10_000, "{pages} pages went back");
        drop(blocks);
    }
}
