//! A work queue over a few threads: last in, first out, so that a tree is walked depth first and the queue stays short.
//! Threads are started only when there is work for them.

use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Scope;

/// Threads for work that is mostly system calls; more than that only contend.
const MAX_THREADS: usize = 16;

struct State<T, E> {
    waiting: Vec<T>,
    active: usize,
    idle: usize,
    started: usize,
    error: Option<E>,
}

struct Shared<T, E, W> {
    state: Mutex<State<T, E>>,
    changed: Condvar,
    threads: usize,
    work: W,
}

/// Where a running task puts further ones.
pub(crate) struct Queue<'a, T> {
    push: &'a dyn Fn(Vec<T>),
}

impl<T> Queue<'_, T> {
    pub fn extend(&self, tasks: Vec<T>) {
        if !tasks.is_empty() {
            (self.push)(tasks);
        }
    }
}

/// How many processors this process may use, at least 1. Asked of the system once: it takes a dozen system calls.
pub fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

pub(crate) fn threads() -> usize {
    processors().min(MAX_THREADS)
}

/// Runs `work` on all tasks, and on those that it adds. The first error ends it: tasks that wait are dropped.
pub(crate) fn run<T, E, W>(tasks: Vec<T>, work: W) -> Result<(), E>
where
    T: Send,
    E: Send,
    W: Fn(T, &Queue<'_, T>) -> Result<(), E> + Sync,
{
    let state = State { waiting: tasks, active: 0, idle: 0, started: 1, error: None };
    let shared = Shared { state: Mutex::new(state), changed: Condvar::new(), threads: threads(), work };
    std::thread::scope(|scope| {
        shared.start_more(shared.lock(), scope);
        shared.serve(scope);
    });
    let state = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    state.error.map_or(Ok(()), Err)
}

impl<T, E, W> Shared<T, E, W>
where
    T: Send,
    E: Send,
    W: Fn(T, &Queue<'_, T>) -> Result<(), E> + Sync,
{
    fn lock(&self) -> MutexGuard<'_, State<T, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_more<'s>(&'s self, mut state: MutexGuard<'_, State<T, E>>, scope: &'s Scope<'s, '_>) {
        // One waiting task is left for the thread that queued it.
        let wanted = state.waiting.len().saturating_sub(1).saturating_sub(state.idle);
        let more = wanted.min(self.threads - state.started.min(self.threads));
        state.started += more;
        drop(state);
        for _ in 0..more {
            scope.spawn(move || self.serve(scope));
        }
    }

    fn serve<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        let push = |tasks: Vec<T>| {
            let mut state = self.lock();
            if state.error.is_none() {
                state.waiting.extend(tasks);
                if state.idle > 0 {
                    self.changed.notify_all();
                }
                self.start_more(state, scope);
            }
        };
        let queue = Queue { push: &push };
        while let Some(task) = self.next() {
            let mut ended = Ended { shared: self, error: None };
            ended.error = (self.work)(task, &queue).err();
        }
    }

    fn next(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some(task) = state.waiting.pop() {
                state.active += 1;
                return Some(task);
            }
            if state.active == 0 {
                return None;
            }
            state.idle += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

/// Counts a task as done also when it panics: the others must not wait for ever.
struct Ended<'a, T, E, W>
where
    T: Send,
    E: Send,
    W: Fn(T, &Queue<'_, T>) -> Result<(), E> + Sync,
{
    shared: &'a Shared<T, E, W>,
    error: Option<E>,
}

impl<T, E, W> Drop for Ended<'_, T, E, W>
where
    T: Send,
    E: Send,
    W: Fn(T, &Queue<'_, T>) -> Result<(), E> + Sync,
{
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.active -= 1;
        if self.error.is_some() || std::thread::panicking() {
            state.waiting.clear();
            if state.error.is_none() {
                state.error = self.error.take();
            }
        }
        if state.active == 0 && state.waiting.is_empty() {
            self.shared.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn runs_all_tasks_and_those_they_add() {
        let sum = AtomicU32::new(0);
        run(vec![10_u32, 5], |n, queue| {
            sum.fetch_add(1, Ordering::Relaxed);
            queue.extend((0..n).map(|_| 0).collect());
            Ok::<(), ()>(())
        })
        .unwrap();
        assert_eq!(sum.into_inner(), 17);
    }

    #[test]
    fn the_first_error_ends_it() {
        let ran = AtomicU32::new(0);
        let done = run((0..1000).collect(), |n, _| {
            ran.fetch_add(1, Ordering::Relaxed);
            if n == 999 { Err(n) } else { Ok(()) }
        });
        assert_eq!(done, Err(999));
        assert!(ran.into_inner() < 1000);
    }
}
