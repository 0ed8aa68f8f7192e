//! Tokens from a registry's token server (distribution spec, "Token Authentication" and "OAuth2").

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::http::Method;
use ureq::http::header::{CONTENT_TYPE, HeaderName};

use super::scope::Scopes;
use crate::error::{Error, parse_codes};
use crate::hosts::HostSettings;
use crate::http::{Payload, Request, Response, Transport};
use crate::secret::{Credential, Secret};
use crate::url::{Url, encode};

/// A bearer token and when to get another.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub value: Secret,
    pub expires: Instant,
    /// A refresh token, where one was asked for.
    pub refresh: Option<Secret>,
}

/// What to ask a token server for.
pub(crate) struct TokenRequest<'a> {
    pub realm: &'a Url,
    pub service: Option<&'a str>,
    pub scopes: &'a Scopes,
    pub credential: Option<&'a Credential>,
    /// Ask for a refresh token too (log-in).
    pub offline: bool,
}

/// Why there is no token.
pub(crate) enum TokenFailure {
    /// The credential is not good, in the server's words.
    Rejected(String),
    /// The credential does not give these scopes, in the server's words.
    Denied(String),
    Error(Error),
}

impl From<Error> for TokenFailure {
    fn from(e: Error) -> Self {
        Self::Error(e)
    }
}

const CLIENT_ID: &str = "kiln";
/// The specification's least life time: servers that say nothing, or less, mean this.
const MIN_LIFE: u64 = 60;
const MAX_ANSWER: usize = 1 << 20;

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
    refresh_token: Option<String>,
}

impl TokenRequest<'_> {
    /// Asks the server. `settings_of` says how to connect to a host.
    pub fn fetch(
        &self,
        transport: &Transport,
        settings_of: &dyn Fn(&Url) -> HostSettings,
    ) -> Result<Token, TokenFailure> {
        let started = Instant::now();
        let response = match self.credential {
            Some(Credential::IdentityToken(refresh)) => self.post(transport, refresh, settings_of)?,
            other => self.get(transport, other, settings_of)?,
        };
        let (status, host) = (response.status, response.host());
        let limit = transport.timeouts.stall * 2;
        if !(200..300).contains(&status) {
            let retry_after = crate::session::retry_after(&response.headers);
            let codes = parse_codes(&response.error_body());
            let said = codes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            // OAuth2 servers answer 400 to a refresh token that is not good any more
            let rejected = status == 401 || (status == 400 && self.credential.is_some());
            let said = if said.is_empty() { format!("status {status}") } else { said };
            return Err(match status {
                _ if rejected => TokenFailure::Rejected(said),
                403 => TokenFailure::Denied(said),
                429 => Error::RateLimited { registry: host, retry_after, codes }.into(),
                _ => {
                    let request = format!("a token request to {}", self.realm);
                    Error::Status { registry: host, request, status, retry_after, codes }.into()
                }
            });
        }
        let bytes = response.bytes(MAX_ANSWER, limit)?;
        // serde's message would quote the token
        let malformed =
            || Error::Protocol { host: host.clone(), reason: "its token answer is not the JSON expected".into() };
        let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| malformed())?;
        let value = answer.token.or(answer.access_token).filter(|t| !t.is_empty()).ok_or_else(malformed)?;
        let life = answer.expires_in.unwrap_or(MIN_LIFE).clamp(MIN_LIFE, 86_400);
        // renewed a little early, so that it does not expire between here and the registry
        let expires = started + Duration::from_secs(life - life / 6);
        Ok(Token { value: Secret::new(value), expires, refresh: answer.refresh_token.map(Secret::new) })
    }

    fn get(
        &self,
        transport: &Transport,
        credential: Option<&Credential>,
        settings_of: &dyn Fn(&Url) -> HostSettings,
    ) -> Result<Response, Error> {
        let mut url = self.realm.clone();
        if let Some(service) = self.service {
            url = url.with_query("service", service);
        }
        for scope in self.scopes.texts() {
            url = url.with_query("scope", &scope);
        }
        if let Some(user) = credential.and_then(Credential::username) {
            url = url.with_query("account", user);
        }
        if self.offline {
            url = url.with_query("offline_token", "true").with_query("client_id", CLIENT_ID);
        }
        let settings = settings_of(&url);
        let mut request = Request::new(Method::GET, url);
        request.authorization = credential.and_then(basic);
        transport.get(request, &settings, settings_of)
    }

    fn post(
        &self,
        transport: &Transport,
        refresh: &Secret,
        settings_of: &dyn Fn(&Url) -> HostSettings,
    ) -> Result<Response, Error> {
        let mut form =
            format!("grant_type=refresh_token&client_id={CLIENT_ID}&refresh_token={}", encode(refresh.expose()));
        if let Some(service) = self.service {
            form.push_str(&format!("&service={}", encode(service)));
        }
        let scopes = self.scopes.to_string();
        if !scopes.is_empty() {
            form.push_str(&format!("&scope={}", encode(&scopes)));
        }
        let mut request = Request::new(Method::POST, self.realm.clone());
        let form_type: (HeaderName, String) = (CONTENT_TYPE, "application/x-www-form-urlencoded".into());
        request.headers.push(form_type);
        request.payload = Payload::Bytes(form.as_bytes());
        transport.send(request, &settings_of(self.realm))
    }
}

/// The header for a user and password.
pub(crate) fn basic(credential: &Credential) -> Option<Secret> {
    match credential {
        Credential::Basic { username, password } => {
            Some(Secret::new(format!("Basic {}", STANDARD.encode(format!("{username}:{}", password.expose())))))
        }
        _ => None,
    }
}
