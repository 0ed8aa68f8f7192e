//! A switch that ends every run it was given to.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Hook = Box<dyn Fn() + Send>;

#[derive(Default)]
struct Inner {
    cancelled: AtomicBool,
    next: AtomicU64,
    hooks: Mutex<HashMap<u64, Hook>>,
}

impl Inner {
    fn hooks(&self) -> MutexGuard<'_, HashMap<u64, Hook>> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cancels work in other threads. Clones share one state; once cancelled it stays so.
#[derive(Clone, Default)]
pub struct CancelToken(Arc<Inner>);

impl std::fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CancelToken").field(&self.is_cancelled()).finish()
    }
}

impl CancelToken {
    /// A token that is not cancelled.
    pub fn new() -> CancelToken {
        CancelToken::default()
    }

    /// Cancels: kills the containers that run under this token and refuses new ones.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
        for hook in self.0.hooks().values() {
            hook();
        }
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// Calls `hook` at cancellation, at once if that was already; until the guard is dropped. The hook may be
    /// called twice, must be quick and must not use this token.
    pub fn on_cancel(&self, hook: impl Fn() + Send + 'static) -> OnCancel {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let mut hooks = self.0.hooks();
        // Checked under the lock: `cancel` sets the flag before it takes it, so no hook is missed.
        if self.is_cancelled() {
            hook();
        }
        hooks.insert(id, Box::new(hook));
        OnCancel { token: self.clone(), id }
    }
}

/// Keeps a hook registered.
pub struct OnCancel {
    token: CancelToken,
    id: u64,
}

impl Drop for OnCancel {
    fn drop(&mut self) {
        self.token.0.hooks().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_run_once_cancelled_and_not_after_drop() {
        let token = CancelToken::new();
        let count = Arc::new(AtomicU64::new(0));
        let hook = |c: &Arc<AtomicU64>| {
            let c = c.clone();
            move || {
                c.fetch_add(1, Ordering::SeqCst);
            }
        };
        let kept = token.on_cancel(hook(&count));
        drop(token.on_cancel(hook(&count)));
        token.clone().cancel();
        assert_eq!(count.load(Ordering::SeqCst), 1);
        let late = token.on_cancel(hook(&count));
        assert_eq!(count.load(Ordering::SeqCst), 2);
        assert!(token.is_cancelled());
        drop((kept, late));
    }
}
