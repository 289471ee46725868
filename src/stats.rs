//! Statistics of kernels, sampled from Linux and not from the engine; the last sample of the dead is kept.

/// The numbers of one kernel (19.03 agent, stats.py; the twelve Redis fields).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KernelStats {
    /// CPU time at the previous sample, ms.
    pub precpu_used: f64,
    /// CPU time, ms.
    pub cpu_used: f64,
    /// CPU time of the whole node at the previous sample, ms.
    pub precpu_system_used: f64,
    /// CPU time of the whole node, ms.
    pub cpu_system_used: f64,
    /// Highest memory use, bytes.
    pub mem_max_bytes: u64,
    /// Memory use, bytes.
    pub mem_cur_bytes: u64,
    /// Received bytes; never decreases.
    pub net_rx_bytes: u64,
    /// Sent bytes; never decreases.
    pub net_tx_bytes: u64,
    /// Bytes read from block devices; never decreases.
    pub io_read_bytes: u64,
    /// Bytes written to block devices; never decreases.
    pub io_write_bytes: u64,
    /// Always 0.
    pub io_max_scratch_size: u64,
    /// Always 0.
    pub io_cur_scratch_size: u64,
}
