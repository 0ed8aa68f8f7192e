//! How many steps run at once.
//!
//! A step holds a slot while it runs. There are as many slots as `--jobs`, but a step that sleeps or waits for the
//! network does not use the processor that its slot stands for: while slots are taken and the processors are idle
//! all the same, a further step is let in. So twelve `sleep 1` take a second, and twelve compilers take turns.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the processors are watched before one more step is let in.
const WINDOW: Duration = Duration::from_millis(20);
/// Steps that may run for each slot, however idle the machine is: each has a process and open files.
const MOST_PER_SLOT: usize = 64;

/// Lets steps in.
pub struct Admission {
    slots: usize,
    running: Mutex<usize>,
    freed: Condvar,
}

/// The right to run; given back when dropped.
pub struct Permit<'a>(&'a Admission);

impl Admission {
    /// With `slots` steps at once that use a processor each.
    pub fn new(slots: usize) -> Self {
        Self { slots: slots.max(1), running: Mutex::new(0), freed: Condvar::new() }
    }

    /// Waits for a slot, or for idle processors.
    pub fn enter(&self) -> Permit<'_> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut watch = IdleWatch::start();
        while *running >= self.slots {
            let waited = self.freed.wait_timeout(running, WINDOW).unwrap_or_else(PoisonError::into_inner);
            running = waited.0;
            if *running < self.slots * MOST_PER_SLOT && watch.has_idle_processor() {
                break;
            }
        }
        *running += 1;
        Permit(self)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.running.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.freed.notify_one();
    }
}

/// Compares `/proc/stat` with what it said a window ago.
struct IdleWatch {
    since: Instant,
    idle: Option<u64>,
}

impl IdleWatch {
    fn start() -> Self {
        Self { since: Instant::now(), idle: idle_ticks() }
    }

    /// Whether at least half a processor was idle since the last call; starts a new window.
    fn has_idle_processor(&mut self) -> bool {
        let elapsed = self.since.elapsed();
        if elapsed < WINDOW {
            return false;
        }
        let now = idle_ticks();
        let idle = match (self.idle, now) {
            (Some(before), Some(now)) => now.saturating_sub(before),
            _ => return false,
        };
        *self = Self { since: Instant::now(), idle: now };
        // A tick is 10 ms on every Linux that shows this file.
        u128::from(idle) * 10 * 2 >= elapsed.as_millis()
    }
}

/// Idle and I/O-wait ticks of all processors together since boot.
fn idle_ticks() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let mut fields = stat.lines().next()?.split_ascii_whitespace().skip(4);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn sleeping_steps_do_not_hold_others_back() {
        let admission = Admission::new(1);
        let most = AtomicUsize::new(0);
        let now = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let _permit = admission.enter();
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(400));
                    now.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert!(most.into_inner() >= 1);
        assert_eq!(*admission.running.lock().unwrap(), 0);
    }
}
