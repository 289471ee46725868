//! What signals do to this process.

/// Gives SIGPIPE back its usual meaning, which Rust programs change and pass on to what they execute.
pub fn default_sigpipe() {
    // SAFETY: sets the default action, which runs no code of ours.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}
