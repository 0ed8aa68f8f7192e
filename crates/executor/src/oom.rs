//! The machine's count of out-of-memory kills, for containers without a control group of their own.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

static SEEN: AtomicU64 = AtomicU64::new(0);

fn kills() -> u64 {
    let vmstat = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    vmstat.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
}

/// Starts counting.
pub fn start() {
    SEEN.store(kills(), Ordering::Relaxed);
}

/// Whether there was a kill since the last question.
pub fn happened() -> bool {
    let now = kills();
    now > SEEN.swap(now, Ordering::Relaxed)
}
