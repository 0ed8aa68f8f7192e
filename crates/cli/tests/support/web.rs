//! A web server on loopback: files, and git repositories through `git http-backend`, also behind a token.
#![allow(dead_code, reason = "each test binary uses its part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The server. `/files/NAME` is a file; `/git/REPO` a repository; `/private/REPO` the same for who has the token.
pub struct Web {
    port: u16,
    dir: PathBuf,
}

/// What `/private/` wants: `x-access-token:t0ken-abc-DEF-1234567`.
pub const WEB_TOKEN: &str = "t0ken-abc-DEF-1234567";
const WEB_AUTHORIZATION: &str = "basic eC1hY2Nlc3MtdG9rZW46dDBrZW4tYWJjLURFRi0xMjM0NTY3";

impl Web {
    /// Serves a directory.
    pub fn start(dir: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let root = dir.to_owned();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let root = root.clone();
                std::thread::spawn(move || drop(serve(&client, &root)));
            }
        });
        Self { port, dir: dir.to_owned() }
    }

    /// A URL.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Runs git in the directory and returns what it says.
    #[track_caller]
    pub fn git(&self, args: &str) -> String {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=n", "-c", "user.email=e", "-c", "init.defaultBranch=main"]);
        git.args(["-c", "protocol.file.allow=always"]).args(args.split(' ')).current_dir(&self.dir).env_clear();
        let output = git.env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent").output().expect("git");
        assert!(output.status.success(), "git {args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

fn serve(client: &TcpStream, root: &Path) -> std::io::Result<()> {
    let mut input = BufReader::new(client);
    let mut line = String::new();
    input.read_line(&mut line)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut headers = std::collections::BTreeMap::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    input.read_exact(&mut body)?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let answer = match path
        .strip_prefix("/private/")
        .map(|rest| (true, rest))
        .or(path.strip_prefix("/git/").map(|rest| (false, rest)))
    {
        Some((true, _)) if headers.get("authorization").map(String::as_str) != Some(WEB_AUTHORIZATION) => {
            b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n".to_vec()
        }
        Some((_, repository)) => backend(root, &method, repository, query, &headers, &body)?,
        None => match std::fs::read(root.join(path.trim_start_matches('/'))) {
            Ok(file) => {
                [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", file.len()).into_bytes(), file].concat()
            }
            Err(_) => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n".to_vec(),
        },
    };
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n");
    let (head, rest) = end.map_or((answer.as_slice(), &[][..]), |at| (&answer[..at + 2], &answer[at + 4..]));
    let mut client = client;
    client.write_all(&[head, b"Connection: close\r\n\r\n", rest].concat())
}

/// A CGI program's answer as one of HTTP.
fn backend(
    root: &Path,
    method: &str,
    repository: &str,
    query: &str,
    headers: &std::collections::BTreeMap<String, String>,
    body: &[u8],
) -> std::io::Result<Vec<u8>> {
    let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
    let mut git = Command::new("git");
    git.arg("http-backend").env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent");
    git.env("GIT_PROJECT_ROOT", root.join("git")).env("GIT_HTTP_EXPORT_ALL", "1").env("REMOTE_ADDR", "127.0.0.1");
    git.env("PATH_INFO", format!("/{repository}")).env("QUERY_STRING", query).env("REQUEST_METHOD", method);
    git.env("CONTENT_TYPE", header("content-type")).env("CONTENT_LENGTH", body.len().to_string());
    git.env("HTTP_CONTENT_ENCODING", header("content-encoding")).env("GIT_PROTOCOL", header("git-protocol"));
    let mut git = git.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = git.stdin.take() {
        stdin.write_all(body)?;
    }
    let output = git.wait_with_output()?.stdout;
    let text = String::from_utf8_lossy(&output[..output.len().min(4096)]).into_owned();
    let status = text.lines().find_map(|l| l.strip_prefix("Status: ")).unwrap_or("200 OK");
    Ok([format!("HTTP/1.1 {status}\r\n").into_bytes(), output].concat())
}
