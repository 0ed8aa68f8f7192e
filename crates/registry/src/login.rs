//! `login` and `logout`.

use ureq::http::Method;
use ureq::http::header::WWW_AUTHENTICATE;

use crate::auth::challenge::{self, Challenge};
use crate::auth::scope::Scopes;
use crate::auth::token::{TokenFailure, TokenRequest, basic};
use crate::client::Client;
use crate::error::Error;
use crate::http::{Request, Response};
use crate::keychain::{StoredIn, normalise_key};
use crate::secret::Credential;
use crate::session::Session;
use crate::url::Url;

/// What a log-in led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedIn {
    /// Where the credential is kept.
    pub stored: StoredIn,
    /// The registry gave a token that is kept instead of the password.
    pub identity_token: bool,
}

impl Client {
    /// Checks a credential with the registry and keeps it. Nothing is kept if the registry does not accept it.
    ///
    /// `registry` may be written as people and docker's files do: `ghcr.io`, `ghcr.io/org` (for one namespace),
    /// `https://index.docker.io/v1/`.
    pub fn login(&self, registry: &str, credential: &Credential) -> Result<LoggedIn, Error> {
        let key = normalise_key(registry);
        let session = self.host(key.split('/').next().unwrap_or(&key))?;
        let kept = session.verify(credential)?;
        let identity_token = kept.is_some();
        let stored = self.inner.auth.keychain().store(&key, kept.as_ref().unwrap_or(credential))?;
        self.inner.auth.reset();
        Ok(LoggedIn { stored, identity_token })
    }

    /// Forgets a credential. `false` if there was none.
    pub fn logout(&self, registry: &str) -> Result<bool, Error> {
        let erased = self.inner.auth.keychain().erase(&normalise_key(registry))?;
        self.inner.auth.reset();
        Ok(erased)
    }
}

impl Session {
    /// `Ok` if the credential is good; with the refresh token to keep instead, if the registry gave one.
    fn verify(&self, credential: &Credential) -> Result<Option<Credential>, Error> {
        let inner = &self.inner;
        let settings_of = |url: &Url| inner.settings_of(url);
        let ask = |authorization| {
            let mut request = Request::new(Method::GET, self.base.clone());
            request.authorization = authorization;
            inner.transport.get(request, &self.spec.settings, &settings_of)
        };
        let bare = ask(None)?;
        if bare.status != 401 {
            // a registry without log-in takes any credential; one that is none is told so
            return self.welcome(bare).map(|()| None);
        }
        let values = bare.headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
        let challenges = challenge::parse(values);
        let Some(bearer) = challenges.iter().find(|c| c.scheme == "bearer") else {
            let Some(header) = basic(credential) else {
                return Err(self.rejected("it takes a user name and a password only".into()));
            };
            return self.welcome(ask(Some(header))?).map(|()| None);
        };
        let token = self.login_token(bearer, credential, &settings_of)?;
        let header = crate::secret::Secret::new(format!("Bearer {}", token.value.expose()));
        self.welcome(ask(Some(header))?)?;
        Ok(token.refresh.filter(|_| matches!(credential, Credential::Basic { .. })).map(Credential::IdentityToken))
    }

    fn login_token(
        &self,
        bearer: &Challenge,
        credential: &Credential,
        settings_of: &dyn Fn(&Url) -> crate::hosts::HostSettings,
    ) -> Result<crate::auth::token::Token, Error> {
        let protocol = |reason: &str| Error::Protocol { host: self.spec.host.clone(), reason: reason.into() };
        let realm = bearer.param("realm").and_then(|r| self.base.join(r));
        let realm = realm.ok_or_else(|| protocol("its token server is not a usable URL"))?;
        if self.base.https && !realm.https && !realm.is_loopback() {
            return Err(protocol("its token server is not https, so no credentials are sent there"));
        }
        let scopes = Scopes::default();
        let (service, credential) = (bearer.param("service"), Some(credential));
        let request = TokenRequest { realm: &realm, service, scopes: &scopes, credential, offline: true };
        request.fetch(&self.inner.transport, settings_of).map_err(|failure| match failure {
            TokenFailure::Error(e) => e,
            TokenFailure::Rejected(reason) | TokenFailure::Denied(reason) => self.rejected(reason),
        })
    }

    fn welcome(&self, response: Response) -> Result<(), Error> {
        match response.status {
            200..=299 => {
                response.discard();
                Ok(())
            }
            401 | 403 => Err(self.rejected("wrong user name or password".into())),
            _ => Err(self.failure(response, "its API", "GET /v2/")),
        }
    }

    fn rejected(&self, reason: String) -> Error {
        let registry = self.spec.registry.clone();
        Error::Unauthorized { registry, what: "log-in".into(), reason, codes: Vec::new() }
    }
}
