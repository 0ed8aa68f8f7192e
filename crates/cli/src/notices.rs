//! What the registry client has to say while it works, on its way to whichever display runs at the moment.
//!
//! The client is made before there is a display, and a warning is worth one line, however many requests lead to it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_engine::events::{Event, EventSink};
use kiln_engine::registry;

/// Takes the registry client's events.
#[derive(Default)]
pub struct Notices(Mutex<State>);

#[derive(Default)]
struct State {
    display: Option<Arc<dyn EventSink>>,
    said: BTreeSet<String>,
}

impl Notices {
    /// Shows notices there from now on; before, they are lines on standard error.
    pub fn attach(&self, display: Arc<dyn EventSink>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).display = Some(display);
    }

    /// Takes one.
    pub fn take(&self, event: &registry::Event) {
        let text = event.to_string();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if event.is_warning() && !state.said.insert(text.clone()) {
            return;
        }
        match &state.display {
            Some(display) => display.event(Event::Warning(text)),
            None => eprintln!("WARNING: {text}"),
        }
    }
}
