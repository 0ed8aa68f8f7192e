//! Which credential to use for a registry now: the first of the keychain that has not been refused.
//!
//! A credential that is not good (401 to Basic, a token server's 401 or 400) is not used again for its registry. One
//! that a token server turned down with 403 may only lack rights to one repository: it is not used again for these
//! scopes. (GHCR says 403 to expired tokens too, and for them the effect is the same.)

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;

use super::{Target, lock};
use crate::event::{Event, EventSink};
use crate::keychain::{Found, Keychain};
use crate::secret::{Credential, Secret};

/// The keychain, with what is known of its credentials.
pub(crate) struct Credentials {
    pub keychain: Keychain,
    state: Mutex<State>,
    events: EventSink,
}

/// Registry, repository, and the origins that are not to be used.
type Lookup = (String, String, BTreeSet<String>);

#[derive(Default)]
struct State {
    /// (registry, origin)
    rejected: BTreeSet<(String, String)>,
    /// (registry, origin, scopes)
    denied: BTreeSet<(String, String, String)>,
    /// Warnings that were given.
    told: BTreeSet<String>,
    found: HashMap<Lookup, Option<Found>>,
}

impl Credentials {
    pub fn new(keychain: Keychain, events: EventSink) -> Self {
        Self { keychain, state: Mutex::default(), events }
    }

    /// The credential to use; `None` is to go without.
    pub fn find(&self, target: &Target<'_>) -> Option<Found> {
        let unusable = self.refused(target);
        let key = (target.registry.to_owned(), target.repository.to_owned(), unusable);
        if let Some(known) = lock(&self.state).found.get(&key) {
            return known.clone();
        }
        let mut problems = Vec::new();
        let found = self.keychain.find(target.registry, target.repository, &key.2, &mut |e| problems.push(e));
        problems.into_iter().for_each(|e| self.tell(e));
        lock(&self.state).found.insert(key, found.clone());
        found
    }

    /// What was found so far: registry and secret.
    pub fn used(&self) -> Vec<(String, Secret)> {
        let state = lock(&self.state);
        let found = state.found.iter().filter_map(|((registry, ..), found)| Some((registry, found.as_ref()?)));
        let secret = |credential: &Credential| match credential {
            Credential::Basic { password, .. } => password.clone(),
            Credential::IdentityToken(token) | Credential::Bearer(token) => token.clone(),
        };
        found.map(|(registry, found)| (registry.clone(), secret(&found.credential))).collect()
    }

    /// The origins that were refused for what is wanted now.
    pub fn refused(&self, target: &Target<'_>) -> BTreeSet<String> {
        let (state, scopes) = (lock(&self.state), target.scopes.to_string());
        let rejected = state.rejected.iter().filter(|(r, _)| r == target.registry).map(|(_, origin)| origin);
        let denied = state.denied.iter().filter(|(r, _, s)| r == target.registry && *s == scopes).map(|(_, o, _)| o);
        rejected.chain(denied).cloned().collect()
    }

    /// A credential is not good.
    pub fn reject(&self, target: &Target<'_>, origin: &str, reason: &str) {
        lock(&self.state).rejected.insert((target.registry.to_owned(), origin.to_owned()));
        self.warn(target, origin, reason);
    }

    /// A credential is not good enough for these scopes.
    pub fn deny(&self, target: &Target<'_>, origin: &str, reason: &str) {
        let key = (target.registry.to_owned(), origin.to_owned(), target.scopes.to_string());
        lock(&self.state).denied.insert(key);
        self.warn(target, origin, reason);
    }

    fn warn(&self, target: &Target<'_>, origin: &str, reason: &str) {
        let (registry, origin) = (target.registry.to_owned(), origin.to_owned());
        self.tell(Event::CredentialRejected { registry, origin, reason: reason.to_owned() });
    }

    /// Says the same only once.
    fn tell(&self, event: Event) {
        if lock(&self.state).told.insert(event.to_string()) {
            self.events.send(event);
        }
    }

    /// Forgets everything that was refused and found: there was a log-in.
    pub fn reset(&self) {
        *lock(&self.state) = State::default();
    }
}
