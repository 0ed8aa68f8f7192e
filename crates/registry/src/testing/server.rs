//! An HTTP/1.1 server of the simplest kind: one thread per connection, a closure for each request.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A request's head.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The decoded value of a query parameter.
    pub fn query(&self, name: &str) -> Option<String> {
        self.query_all(name).into_iter().next()
    }

    /// All values of a query parameter.
    pub fn query_all(&self, name: &str) -> Vec<String> {
        let query = self.path.split_once('?').map_or("", |(_, q)| q);
        form_values(query, name)
    }
}

/// The values of one key in `a=b&c=d`.
pub(super) fn form_values(form: &str, name: &str) -> Vec<String> {
    form.split('&').filter_map(|p| p.split_once('=')).filter(|(k, _)| *k == name).map(|(_, v)| decode(v)).collect()
}

fn decode(text: &str) -> String {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&b, tail)) = rest.split_first() {
        match (b, tail) {
            (b'%', [a, b, tail @ ..]) => {
                let hex = std::str::from_utf8(&[*a, *b]).ok().and_then(|h| u8::from_str_radix(h, 16).ok());
                out.push(hex.unwrap_or(b'?'));
                rest = tail;
            }
            _ => {
                out.push(if b == b'+' { b' ' } else { b });
                rest = tail;
            }
        }
    }
    String::from_utf8(out).unwrap()
}

/// A request and the connection it came on.
pub struct Exchange {
    /// The head.
    pub request: Request,
    stream: BufReader<TcpStream>,
    body: Framing,
    close: bool,
}

/// How much of a body is to come.
enum Framing {
    Length(u64),
    Chunked { left: u64, first: bool },
    Done,
}

impl Exchange {
    fn read(mut stream: BufReader<TcpStream>) -> io::Result<Option<Self>> {
        let (first, headers) = match read_head(&mut stream)? {
            Some(head) => head,
            None => return Ok(None),
        };
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap_or("").to_owned(), words.next().unwrap_or("").to_owned());
        let request = Request { method, path, headers };
        let body = framing(&request.headers);
        if request.header("expect").is_some() {
            stream.get_mut().set_nodelay(true)?;
        }
        let close = request.header("connection").is_some_and(|c| c.eq_ignore_ascii_case("close"));
        Ok(Some(Self { request, stream, body, close }))
    }

    /// Tells a client that waits for it to send its body. Called by the reading functions.
    fn go_on(&mut self) -> io::Result<()> {
        let waiting = self.request.headers.iter().position(|(n, _)| n == "expect");
        if let Some(at) = waiting {
            self.request.headers.remove(at);
            self.stream.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        Ok(())
    }

    /// The next part of the request's body; empty at its end.
    pub fn read_some(&mut self) -> io::Result<Vec<u8>> {
        self.go_on()?;
        read_framed(&mut self.stream, &mut self.body)
    }

    /// The whole body.
    pub fn read_body(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let part = self.read_some()?;
            if part.is_empty() {
                return Ok(all);
            }
            all.extend(part);
        }
    }

    /// Answers with a body.
    pub fn respond(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) -> io::Result<()> {
        let length = body.len().to_string();
        let mut all = headers.to_vec();
        all.push(("content-length", &length));
        self.head(status, &all)?;
        if self.request.method != "HEAD" {
            self.raw(body)?;
        }
        self.drop_body()
    }

    /// As Go's server does: a short rest of the body is read, a long one makes the connection useless.
    fn drop_body(&mut self) -> io::Result<()> {
        let mut left = 256 * 1024;
        while self.request.header("expect").is_none() && left > 0 {
            let part = read_framed(&mut self.stream, &mut self.body)?.len();
            if part == 0 {
                return Ok(());
            }
            left -= part.min(left);
        }
        self.close = true;
        Ok(())
    }

    /// Writes an answer's head.
    pub fn head(&mut self, status: u16, headers: &[(&str, &str)]) -> io::Result<()> {
        let mut text = format!("HTTP/1.1 {status} Status\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        self.raw(text.as_bytes())
    }

    /// Writes bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Ends the connection after this exchange.
    pub fn close(&mut self) {
        self.close = true;
    }

    /// Waits until the client goes away.
    pub fn wait_for_client(&mut self) {
        let mut sink = [0; 4096];
        while self.stream.read(&mut sink).is_ok_and(|n| n > 0) {}
        self.close = true;
    }
}

type Head = (String, Vec<(String, String)>);

/// First line and headers; `None` at the end of the connection.
pub(super) fn read_head(stream: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let first = line.trim_end().to_owned();
    let mut headers = Vec::new();
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => return Ok(Some((first, headers))),
        }
    }
}

fn framing(headers: &[(String, String)]) -> Framing {
    let find = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    if find("transfer-encoding").is_some_and(|v| v.contains("chunked")) {
        return Framing::Chunked { left: 0, first: true };
    }
    find("content-length").and_then(|v| v.parse().ok()).map_or(Framing::Done, Framing::Length)
}

fn read_framed(stream: &mut impl BufRead, framing: &mut Framing) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; 32 * 1024];
    let left = match framing {
        Framing::Done | Framing::Length(0) => return Ok(Vec::new()),
        Framing::Length(left) => left,
        Framing::Chunked { left, first } => {
            if *left == 0 {
                let mut line = String::new();
                if !std::mem::take(first) {
                    stream.read_line(&mut line)?;
                    line.clear();
                }
                stream.read_line(&mut line)?;
                *left = u64::from_str_radix(line.trim(), 16).map_err(|_| io::Error::other("bad chunk"))?;
                if *left == 0 {
                    stream.read_line(&mut line)?;
                    *framing = Framing::Done;
                    return Ok(Vec::new());
                }
            }
            left
        }
    };
    let max = buf.len().min(usize::try_from(*left).unwrap());
    let n = stream.read(&mut buf[..max])?;
    if n == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    *left -= n as u64;
    buf.truncate(n);
    Ok(buf)
}

/// A running server.
pub struct Server {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    connections: Mutex<BTreeMap<u64, TcpStream>>,
    log: Mutex<Vec<Request>>,
}

impl Server {
    /// Starts a server; `handler` answers each request.
    pub fn start(handler: impl Fn(&mut Exchange) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, shared) = (listener.local_addr().unwrap(), Arc::new(Shared::default()));
        let (for_thread, handler) = (shared.clone(), Arc::new(handler));
        std::thread::spawn(move || {
            for (id, stream) in (0..).zip(listener.incoming().flatten()) {
                if for_thread.stop.load(Ordering::SeqCst) {
                    return;
                }
                let _ = stream.set_nodelay(true);
                for_thread.connections.lock().unwrap().insert(id, stream.try_clone().unwrap());
                let (shared, handler) = (for_thread.clone(), handler.clone());
                std::thread::spawn(move || {
                    let _ = serve(stream, &shared, &*handler);
                    // closed with the last copy: a client that is still sending must notice
                    let last = shared.connections.lock().unwrap().remove(&id);
                    drop(last);
                });
            }
        });
        Self { addr, shared }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.addr.to_string()
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.log.lock().unwrap().clone()
    }

    /// `GET /path` lines of all requests so far.
    pub fn lines(&self) -> Vec<String> {
        self.requests().iter().map(|r| format!("{} {}", r.method, r.path)).collect()
    }
}

fn serve(
    stream: TcpStream,
    shared: &Shared,
    handler: &(dyn Fn(&mut Exchange) -> io::Result<()> + Send + Sync),
) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let Some(mut exchange) = Exchange::read(reader)? else { return Ok(()) };
        shared.log.lock().unwrap().push(exchange.request.clone());
        handler(&mut exchange)?;
        if exchange.close || shared.stop.load(Ordering::SeqCst) {
            return Ok(());
        }
        reader = exchange.stream;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.addr);
        for connection in self.shared.connections.lock().unwrap().values() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}
