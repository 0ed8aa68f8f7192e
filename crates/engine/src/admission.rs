//! How many steps run at once.
//!
//! There are as many slots as `--jobs`. A step that sleeps or waits for the network does not use the processor that its slot
//! stands for: while all slots are taken, the processes of running steps are looked at, and steps of which all processes
//! sleep do not count. So twelve `sleep 1` take a second, and twelve compilers take turns.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use kiln_process::{Stat, children};

/// How often running steps are looked at while another one waits.
const WINDOW: Duration = Duration::from_millis(10);
/// Steps that may run for each slot, however quiet they are: each has processes and open files.
const MOST_PER_SLOT: usize = 64;
/// Processes of one step that are looked at; a step with more is not asleep.
const MOST_PROCESSES: usize = 64;

/// Lets steps in.
pub struct Admission {
    slots: usize,
    running: Mutex<Running>,
    freed: Condvar,
}

#[derive(Default)]
struct Running {
    next: u64,
    /// The first process of each running step, once it has one.
    steps: BTreeMap<u64, Option<i32>>,
}

/// The right to run; given back when dropped.
pub struct Permit<'a> {
    admission: &'a Admission,
    id: u64,
}

impl Admission {
    /// With `slots` steps at once that use a processor each.
    pub fn new(slots: usize) -> Self {
        Self { slots: slots.max(1), running: Mutex::default(), freed: Condvar::new() }
    }

    /// Waits for a slot, or for running steps to fall asleep.
    pub fn enter(&self) -> Permit<'_> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.has_room(&running) {
            running = self.freed.wait_timeout(running, WINDOW).unwrap_or_else(PoisonError::into_inner).0;
        }
        let id = running.next;
        running.next += 1;
        running.steps.insert(id, None);
        Permit { admission: self, id }
    }

    /// How many steps may run at once, if nearly all of them sleep.
    pub fn most(&self) -> usize {
        self.slots.saturating_mul(MOST_PER_SLOT)
    }

    fn has_room(&self, running: &Running) -> bool {
        let count = running.steps.len();
        if count < self.slots {
            return true;
        }
        let busy = running.steps.values().filter(|pid| pid.is_none_or(is_awake)).count();
        busy < self.slots && count < self.most()
    }
}

impl Permit<'_> {
    /// Names the step's first process.
    pub fn started(&self, pid: i32) {
        let mut running = self.admission.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.steps.insert(self.id, Some(pid));
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.admission.running.lock().unwrap_or_else(PoisonError::into_inner).steps.remove(&self.id);
        self.admission.freed.notify_one();
    }
}

/// Whether a process or one of its descendants runs, or waits for a disk. One that is gone does not.
pub(crate) fn is_awake(pid: i32) -> bool {
    let mut pending = vec![pid];
    let mut seen = 0;
    while let Some(pid) = pending.pop() {
        seen += 1;
        let Some(stat) = Stat::of(pid) else { continue };
        if !matches!(stat.state, 'S' | 'Z' | 'T' | 'I') || seen > MOST_PROCESSES {
            return true;
        }
        pending.extend(children(pid));
    }
    false
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn spawn(script: &str) -> Child {
        Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap()
    }

    fn stop(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_sleeping_step_makes_room_and_a_busy_one_does_not() {
        let admission = Admission::new(1);
        let sleeping = spawn("read line");
        let first = admission.enter();
        first.started(sleeping.id() as i32);
        let second = admission.enter();
        let busy = spawn("while :; do :; done");
        second.started(busy.id() as i32);
        let third_is_in = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _third = admission.enter();
                third_is_in.store(true, Ordering::SeqCst);
            });
            std::thread::sleep(WINDOW * 5);
            assert!(!third_is_in.load(Ordering::SeqCst), "the busy step holds the only slot");
            stop(busy);
            drop(second);
        });
        assert!(third_is_in.into_inner());
        drop(first);
        stop(sleeping);
    }
}
