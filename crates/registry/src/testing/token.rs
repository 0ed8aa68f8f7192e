//! A token server, and the gate that checks its tokens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::server::{Exchange, Request, Server, form_values};

/// What a user may do.
#[derive(Debug, Clone, Default)]
pub struct Grant {
    /// Password.
    pub password: String,
    /// Prefixes of repositories in which everything is allowed.
    pub repositories: Vec<String>,
    /// The refresh token that a log-in gets, and that is good instead of the password.
    pub refresh: Option<String>,
    /// Answer 403 where not all scopes can be given, as GHCR does, instead of a token without them.
    pub strict: bool,
}

#[derive(Default)]
struct State {
    users: BTreeMap<String, Grant>,
    tokens: BTreeMap<String, Vec<String>>,
    issued: usize,
}

/// A token server: anyone may pull from `public/`, users do what their grants say.
pub struct TokenServer {
    server: Server,
    state: Arc<Mutex<State>>,
}

impl TokenServer {
    /// Starts a server with these users.
    pub fn start(users: &[(&str, Grant)]) -> Self {
        let users = users.iter().map(|(n, g)| ((*n).to_owned(), g.clone())).collect();
        let state = Arc::new(Mutex::new(State { users, ..State::default() }));
        let for_server = state.clone();
        let server = Server::start(move |exchange| answer(exchange, &mut for_server.lock().unwrap()));
        Self { server, state }
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.server.requests()
    }

    /// Number of tokens given out.
    pub fn issued(&self) -> usize {
        self.state.lock().unwrap().issued
    }

    /// All tokens given out so far have expired.
    pub fn expire_all(&self) {
        self.state.lock().unwrap().tokens.clear();
    }

    pub(super) fn gate(&self) -> Gate {
        Gate { realm: self.realm(), state: self.state.clone() }
    }

    /// Where tokens are to be had.
    pub fn realm(&self) -> String {
        format!("{}/token", self.server.url())
    }
}

/// Checks tokens for [`super::FaultProxy`].
pub(super) struct Gate {
    realm: String,
    state: Arc<Mutex<State>>,
}

impl Gate {
    /// The challenge for a request that may not pass.
    pub fn refuses(&self, request: &Request) -> Option<String> {
        let needed = needed_scopes(request);
        let token = request.header("authorization").and_then(|a| a.strip_prefix("Bearer "));
        let state = self.state.lock().unwrap();
        let granted = token.and_then(|t| state.tokens.get(t));
        let allowed = granted.is_some_and(|g| needed.iter().all(|n| g.contains(n)));
        let scope = needed.first().map(|s| format!(",scope=\"{s}\"")).unwrap_or_default();
        (!allowed).then(|| format!("Bearer realm=\"{}\",service=\"test registry\"{scope}", self.realm))
    }
}

/// `repository:NAME:ACTION`, one for each action that a request needs.
fn needed_scopes(request: &Request) -> Vec<String> {
    let path = request.path.split('?').next().unwrap_or("");
    let name = ["/manifests/", "/blobs/", "/tags/", "/referrers/"]
        .iter()
        .find_map(|part| path.split_once(part))
        .and_then(|(left, _)| left.strip_prefix("/v2/"));
    let Some(name) = name else { return Vec::new() };
    let write = !matches!(request.method.as_str(), "GET" | "HEAD") || path.contains("/uploads/");
    let mut needed = vec![format!("repository:{name}:{}", if write { "push" } else { "pull" })];
    needed.extend(request.query("from").map(|from| format!("repository:{from}:pull")));
    needed
}

fn answer(exchange: &mut Exchange, state: &mut State) -> std::io::Result<()> {
    let refuse = br#"{"details":"incorrect username or password"}"#;
    let (user, scopes, offline);
    if exchange.request.method == "POST" {
        let form = String::from_utf8(exchange.read_body()?).unwrap();
        let refresh = form_values(&form, "refresh_token").pop();
        user = state.users.iter().find(|(_, g)| g.refresh.is_some() && g.refresh == refresh).map(|(n, _)| n.clone());
        if user.is_none() || form_values(&form, "grant_type") != ["refresh_token"] {
            return exchange.respond(400, &[], br#"{"error":"invalid_grant","error_description":"token expired"}"#);
        }
        let all = form_values(&form, "scope").pop().unwrap_or_default();
        scopes = all.split(' ').map(str::to_owned).collect();
        offline = false;
    } else {
        user = match exchange.request.header("authorization") {
            None => None,
            Some(header) => match check(header, state) {
                Some(user) => Some(user),
                None => return exchange.respond(401, &[], refuse),
            },
        };
        scopes = exchange.request.query_all("scope");
        offline = exchange.request.query("offline_token").as_deref() == Some("true");
    }
    let grant = user.as_ref().and_then(|u| state.users.get(u)).cloned();
    let granted: Vec<_> = scopes.iter().flat_map(|s| granted_actions(s, grant.as_ref())).collect();
    let wanted: usize = scopes.iter().map(|s| s.split(',').count()).sum();
    if grant.as_ref().is_some_and(|g| g.strict) && granted.len() < wanted {
        return exchange.respond(403, &[], br#"{"errors":[{"code":"DENIED","message":"denied"}]}"#);
    }
    state.issued += 1;
    let token = format!("token-{}", state.issued);
    state.tokens.insert(token.clone(), granted);
    let mut body = serde_json::json!({ "token": token, "expires_in": 300 });
    if let (true, Some(refresh)) = (offline, grant.and_then(|g| g.refresh)) {
        body["refresh_token"] = refresh.into();
    }
    exchange.respond(200, &[("content-type", "application/json")], body.to_string().as_bytes())
}

fn check(header: &str, state: &State) -> Option<String> {
    let decoded = STANDARD.decode(header.strip_prefix("Basic ")?).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    state.users.get(user).filter(|g| g.password == password).map(|_| user.to_owned())
}

fn granted_actions(scope: &str, grant: Option<&Grant>) -> Vec<String> {
    let Some((resource, actions)) = scope.rsplit_once(':') else { return Vec::new() };
    let name = resource.strip_prefix("repository:").unwrap_or("");
    let owned = grant.is_some_and(|g| g.repositories.iter().any(|p| name.starts_with(p.as_str())));
    let allowed = |action: &&str| owned || (name.starts_with("public/") && *action == "pull");
    actions.split(',').filter(allowed).map(|a| format!("{resource}:{a}")).collect()
}
