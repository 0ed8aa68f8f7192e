//! A proxy in front of a registry that does wrong what it is told to do wrong.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::server::{Exchange, Request, Server, read_head};
use super::token::{Gate, TokenServer};

/// What goes wrong with a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The answer is this one, and the registry is not asked.
    Answer(u16, Vec<(String, String)>, Vec<u8>),
    /// The connection ends before an answer.
    Drop,
    /// The answer's body ends after so many bytes, with the connection.
    CutAfter(u64),
    /// Of the request's body only so much reaches the registry, then both connections end.
    CutUploadAfter(u64),
    /// The registry gets the whole request, but its answer is lost.
    LoseAnswer,
    /// One byte of the body is another.
    Flip(u64),
    /// The body is so much longer or shorter, and the header says so.
    Resize(i64),
    /// The body comes in pieces of this size, with this time between them.
    Drip(usize, Duration),
    /// After so many bytes nothing comes any more, but the connection stays.
    StallAfter(u64),
    /// After the body comes more and more, without announced length.
    Endless,
    /// The body has no announced length: it ends with the connection.
    NoLength,
    /// `Range` does not reach the registry.
    IgnoreRange,
    /// This header of the answer is another.
    SetHeader(&'static str, String),
}

impl Fault {
    /// An answer without headers.
    pub fn status(status: u16) -> Self {
        Self::Answer(status, Vec::new(), Vec::new())
    }

    /// A redirect to another place.
    pub fn redirect(to: &str) -> Self {
        Self::Answer(307, vec![("location".into(), to.into())], Vec::new())
    }

    /// An answer with headers.
    pub fn answer(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Self::Answer(status, headers, body.to_vec())
    }
}

struct Rule {
    method: String,
    part: String,
    left: usize,
    fault: Fault,
}

/// The proxy.
pub struct FaultProxy {
    server: Server,
    rules: Arc<Mutex<Vec<Rule>>>,
}

impl FaultProxy {
    /// Starts a proxy in front of `upstream` (`host:port`).
    pub fn start(upstream: &str) -> Self {
        Self::with_gate(upstream, None)
    }

    /// Starts a proxy that lets only requests with tokens of this server through.
    pub fn gated(upstream: &str, tokens: &TokenServer) -> Self {
        Self::with_gate(upstream, Some(tokens.gate()))
    }

    fn with_gate(upstream: &str, gate: Option<Gate>) -> Self {
        let rules = Arc::new(Mutex::new(Vec::new()));
        let (for_server, upstream) = (rules.clone(), upstream.to_owned());
        let server = Server::start(move |exchange| {
            if let Some(challenge) = gate.as_ref().and_then(|g| g.refuses(&exchange.request)) {
                let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
                return exchange.respond(401, &[("www-authenticate", &challenge)], body);
            }
            let fault = take(&for_server, &exchange.request);
            forward(exchange, &upstream, fault.as_ref())
        });
        Self { server, rules }
    }

    /// The next `times` requests with this method, and `part` in their path, go wrong.
    pub fn fault(&self, method: &str, part: &str, times: usize, fault: Fault) -> &Self {
        self.rules.lock().unwrap().push(Rule { method: method.into(), part: part.into(), left: times, fault });
        self
    }

    /// Nothing goes wrong any more.
    pub fn clear(&self) {
        self.rules.lock().unwrap().clear();
    }

    /// Faults that have not happened yet.
    pub fn pending(&self) -> usize {
        self.rules.lock().unwrap().iter().map(|r| r.left).sum()
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.server.host()
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.server.requests()
    }

    /// `GET /path` lines of all requests so far.
    pub fn lines(&self) -> Vec<String> {
        self.server.lines()
    }
}

fn take(rules: &Mutex<Vec<Rule>>, request: &Request) -> Option<Fault> {
    let mut rules = rules.lock().unwrap();
    let rule = rules.iter_mut().find(|r| r.left > 0 && r.method == request.method && request.path.contains(&r.part))?;
    rule.left -= 1;
    Some(rule.fault.clone())
}

fn forward(exchange: &mut Exchange, upstream: &str, fault: Option<&Fault>) -> io::Result<()> {
    match fault {
        Some(Fault::Answer(status, headers, body)) => {
            let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            return exchange.respond(*status, &headers, body);
        }
        Some(Fault::Drop) => {
            exchange.close();
            return Ok(());
        }
        _ => {}
    }
    let mut to = TcpStream::connect(upstream)?;
    let request = &exchange.request;
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.path);
    for (name, value) in &request.headers {
        let skip = matches!(name.as_str(), "connection" | "expect")
            || (name == "range" && matches!(fault, Some(Fault::IgnoreRange)));
        if !skip {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    head.push_str("connection: close\r\n\r\n");
    to.write_all(head.as_bytes())?;
    if !send_body(exchange, &mut to, fault)? {
        exchange.close();
        return to.shutdown(Shutdown::Both);
    }
    answer(exchange, to, fault)
}

/// `false` if the upload was cut.
fn send_body(exchange: &mut Exchange, to: &mut TcpStream, fault: Option<&Fault>) -> io::Result<bool> {
    let chunked = exchange.request.header("transfer-encoding").is_some();
    let has_body = chunked || exchange.request.header("content-length").is_some_and(|l| l != "0");
    let mut left = match fault {
        Some(Fault::CutUploadAfter(n)) => *n,
        _ => u64::MAX,
    };
    if !has_body {
        return Ok(true);
    }
    loop {
        let mut part = exchange.read_some()?;
        let max = usize::try_from(left).unwrap_or(usize::MAX);
        let cut = part.len() > max;
        part.truncate(max);
        left -= part.len() as u64;
        if part.is_empty() && !cut {
            break;
        }
        if chunked {
            write!(to, "{:x}\r\n", part.len().max(1))?;
            to.write_all(&part)?;
            to.write_all(b"\r\n")?;
        } else {
            to.write_all(&part)?;
        }
        if cut {
            return Ok(false);
        }
    }
    if chunked {
        to.write_all(b"0\r\n\r\n")?;
    }
    Ok(true)
}

fn answer(exchange: &mut Exchange, from: TcpStream, fault: Option<&Fault>) -> io::Result<()> {
    let mut from = BufReader::new(from);
    let (first, mut headers) = read_head(&mut from)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let status: u16 = first.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(502);
    let mut body = Vec::new();
    let chunked = headers.iter().any(|(n, _)| n == "transfer-encoding");
    let length = headers.iter().find(|(n, _)| n == "content-length").and_then(|(_, v)| v.parse().ok());
    let is_head = exchange.request.method == "HEAD";
    let announced: u64 = length.unwrap_or(0);
    if chunked {
        body = read_chunked(&mut from)?;
    }
    headers.retain(|(n, _)| !matches!(n.as_str(), "connection" | "transfer-encoding" | "content-length"));
    if let Some(Fault::SetHeader(name, value)) = fault {
        headers.retain(|(n, _)| n != name);
        headers.push(((*name).to_owned(), value.clone()));
    }
    if matches!(fault, Some(Fault::LoseAnswer)) {
        io::copy(&mut from, &mut io::sink())?;
        exchange.close();
        return Ok(());
    }
    let total = if chunked { body.len() as u64 } else { announced };
    let unframed = matches!(fault, Some(Fault::Endless | Fault::NoLength));
    let shown_length = match fault {
        Some(Fault::Resize(by)) => total.saturating_add_signed(*by),
        _ => total,
    }
    .to_string();
    let mut all: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    if unframed {
        all.push(("connection", "close"));
        exchange.close();
    } else {
        all.push(("content-length", &shown_length));
    }
    exchange.head(status, &all)?;
    if is_head || status == 204 || status == 304 {
        return Ok(());
    }
    let mut source: Box<dyn Read> =
        if chunked { Box::new(io::Cursor::new(body)) } else { Box::new(from.take(announced)) };
    send_answer(exchange, &mut source, fault)
}

fn read_chunked(from: &mut BufReader<TcpStream>) -> io::Result<Vec<u8>> {
    use std::io::BufRead;
    let mut all = Vec::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        let read = from.by_ref().take(size).read_to_end(&mut all)?;
        from.read_line(&mut line)?;
        if size == 0 || (read as u64) < size {
            return Ok(all);
        }
    }
}

fn send_answer(exchange: &mut Exchange, source: &mut dyn Read, fault: Option<&Fault>) -> io::Result<()> {
    let mut offset = 0;
    let mut buf = vec![0; 32 * 1024];
    let (piece, pause) = match fault {
        Some(Fault::Drip(piece, pause)) => (*piece, *pause),
        _ => (buf.len(), Duration::ZERO),
    };
    loop {
        let n = source.read(&mut buf[..piece])?;
        if n == 0 {
            break;
        }
        let mut part = &mut buf[..n];
        let end = offset + n as u64;
        match fault {
            Some(Fault::Flip(at)) if (offset..end).contains(at) => {
                part[usize::try_from(at - offset).unwrap()] ^= 0x40;
            }
            Some(Fault::CutAfter(at) | Fault::StallAfter(at)) if end > *at => {
                part = &mut part[..usize::try_from(at - offset).unwrap()];
                exchange.raw(part)?;
                if matches!(fault, Some(Fault::StallAfter(_))) {
                    exchange.wait_for_client();
                }
                exchange.close();
                return Ok(());
            }
            _ => {}
        }
        exchange.raw(part)?;
        offset = end;
        std::thread::sleep(pause);
    }
    match fault {
        Some(Fault::Resize(by)) if *by > 0 => exchange.raw(&vec![b'x'; usize::try_from(*by).unwrap()]),
        Some(Fault::Endless) => loop {
            exchange.raw(&buf)?;
        },
        _ => Ok(()),
    }
}
