//! A small HTTP server in the test's own process, with the faults that mirrors have.
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What goes wrong with a path.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status.
    Status(u16),
    /// The connection ends after so many bytes of the body, so many times.
    Cut { after: usize, times: usize },
    /// After so many bytes of the body nothing more comes.
    Stall { after: usize },
    /// Content-Length says this much; the body is what it is.
    Length(usize),
    /// These bytes come before the real ones, without Content-Length.
    Endless,
}

#[derive(Default)]
pub struct State {
    pub files: BTreeMap<String, Vec<u8>>,
    pub faults: BTreeMap<String, Fault>,
    /// Requests so far: `GET /path` and `206 /path` for parts, `304 /path`.
    pub log: Vec<String>,
    /// Requests that came as to a proxy: the host, and the login.
    pub proxied: Vec<(String, Option<String>)>,
    pub no_ranges: bool,
}

#[derive(Clone)]
pub struct Server {
    pub state: Arc<Mutex<State>>,
    pub url: String,
}

impl Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Self { state, url }
    }

    pub fn set_fault(&self, path: &str, fault: Fault) {
        self.state.lock().unwrap().faults.insert(path.to_owned(), fault);
    }

    pub fn clear_faults(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    /// The only file whose path ends like this.
    pub fn path(&self, end: &str) -> String {
        let state = self.state.lock().unwrap();
        let mut found = state.files.keys().filter(|p| p.ends_with(end) && !p.contains("by-hash"));
        let path = found.next().unwrap_or_else(|| panic!("no file {end}")).clone();
        assert!(found.next().is_none(), "{end} is ambiguous");
        path
    }

    pub fn edit(&self, end: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.path(end);
        change(self.state.lock().unwrap().files.get_mut(&path).unwrap());
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) if line.trim().is_empty() => break,
                Ok(_) => lines.push(line.trim().to_owned()),
            }
        }
        let Some(path) = lines.first().and_then(|l| l.split(' ').nth(1)).map(str::to_owned) else { return };
        let header = |name: &str| {
            let found = lines.iter().skip(1).find(|l| l.to_ascii_lowercase().starts_with(&format!("{name}:")));
            found.map(|l| l.split_once(':').unwrap().1.trim().to_owned())
        };
        // As a proxy, this has the files of every host.
        let path = match path.strip_prefix("http://") {
            None => path,
            Some(rest) => {
                let at = rest.find('/').unwrap_or(rest.len());
                state.lock().unwrap().proxied.push((rest[..at].to_owned(), header("proxy-authorization")));
                rest[at..].to_owned()
            }
        };
        let range = header("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        if answer(&mut stream, state, &path, range, header("if-none-match")).is_none() {
            return;
        }
    }
}

/// None when the connection is to be closed.
fn answer(
    stream: &mut TcpStream,
    state: &Mutex<State>,
    path: &str,
    range: Option<usize>,
    etag: Option<String>,
) -> Option<()> {
    let mut state = state.lock().unwrap();
    let range = range.filter(|_| !state.no_ranges);
    let Some(body) = state.files.get(path).cloned() else {
        state.log.push(format!("404 {path}"));
        drop(state);
        return write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").ok();
    };
    let tag = format!("\"{}\"", kiln_oci::Digest::of(&body).short());
    if etag.as_deref() == Some(&tag) {
        state.log.push(format!("304 {path}"));
        return write!(stream, "HTTP/1.1 304 Not Modified\r\nETag: {tag}\r\n\r\n").ok();
    }
    let (status, body) = match range {
        Some(from) if from < body.len() => ("206 Partial Content", body[from..].to_vec()),
        Some(_) => {
            drop(state);
            return write!(stream, "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n").ok();
        }
        None => ("200 OK", body),
    };
    state.log.push(format!("{} {path}", if range.is_some() { "206" } else { "GET" }));
    let fault = state.faults.get(path).cloned();
    let mut length = body.len();
    let mut send = body.len();
    match fault {
        Some(Fault::Status(status)) => {
            drop(state);
            return write!(stream, "HTTP/1.1 {status} Broken\r\nContent-Length: 0\r\n\r\n").ok();
        }
        Some(Fault::Cut { after, times }) => {
            send = after.min(body.len());
            match times {
                0 | 1 => drop(state.faults.remove(path)),
                times => drop(state.faults.insert(path.to_owned(), Fault::Cut { after, times: times - 1 })),
            }
        }
        Some(Fault::Stall { after }) => {
            drop(state);
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n").ok()?;
            stream.write_all(&body[..after.min(body.len())]).ok()?;
            // Until the other side is gone.
            _ = stream.read(&mut [0]);
            return None;
        }
        Some(Fault::Length(claimed)) => length = claimed,
        Some(Fault::Endless) => {
            drop(state);
            write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").ok()?;
            stream.write_all(&body).ok()?;
            // Ends when the client has had enough.
            let zeros = vec![0; 64 << 10];
            for _ in 0..16_384 {
                stream.write_all(&zeros).ok()?;
            }
            return None;
        }
        None => {}
    }
    drop(state);
    let part =
        range.map(|from| format!("Content-Range: bytes {from}-{}/{}\r\n", from + body.len() - 1, from + body.len()));
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nETag: {tag}\r\n{}\r\n", part.unwrap_or_default())
        .ok()?;
    stream.write_all(&body[..send]).ok()?;
    (send == body.len() && length == body.len()).then_some(())
}
