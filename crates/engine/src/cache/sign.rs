//! AWS Signature Version 4.

use std::fmt::Write;

use kiln_oci::{Digest, Timestamp};

use super::s3::Credentials;

/// A request to sign.
pub struct ToSign<'a> {
    /// `GET`.
    pub method: &'a str,
    /// Host and port.
    pub host: &'a str,
    /// The path, encoded, beginning with `/`.
    pub path: &'a str,
    /// More headers, names in lower case.
    pub headers: &'a [(String, String)],
    /// SHA-256 of the body, in hex.
    pub body: &'a str,
    /// The region.
    pub region: &'a str,
    /// Now.
    pub at: Timestamp,
}

fn hmac(key: &[u8], data: &str) -> Vec<u8> {
    ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key), data.as_bytes()).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

/// `20130524T000000Z`.
fn stamp(at: Timestamp) -> String {
    let whole = Timestamp::from_seconds(at.seconds()).unwrap_or(at).to_string();
    whole.chars().filter(|c| !matches!(c, '-' | ':')).collect()
}

/// All headers that the request needs, its own included.
pub fn sign(request: &ToSign<'_>, credentials: &Credentials) -> Vec<(String, String)> {
    let stamp = stamp(request.at);
    let day = &stamp[..8];
    let mut headers = request.headers.to_vec();
    headers.push(("host".to_owned(), request.host.to_owned()));
    headers.push(("x-amz-content-sha256".to_owned(), request.body.to_owned()));
    headers.push(("x-amz-date".to_owned(), stamp.clone()));
    headers.extend(credentials.session.iter().map(|s| ("x-amz-security-token".to_owned(), s.clone())));
    headers.sort();
    let names: Vec<&str> = headers.iter().map(|(n, _)| n.as_str()).collect();
    let names = names.join(";");
    let lines: String = headers.iter().map(|(n, v)| format!("{n}:{}\n", v.trim())).collect();
    let canonical = format!("{}\n{}\n\n{lines}\n{names}\n{}", request.method, request.path, request.body);
    let scope = format!("{day}/{}/s3/aws4_request", request.region);
    let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", Digest::of(canonical.as_bytes()).hex());
    let key = [day, request.region, "s3", "aws4_request"]
        .into_iter()
        .fold(format!("AWS4{}", credentials.secret).into_bytes(), |key, part| hmac(&key, part));
    let signature = hex(&hmac(&key, &text));
    let id = &credentials.id;
    let value = format!("AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}");
    headers.push(("authorization".to_owned(), value));
    headers
}

/// A key as a path: what is not unreserved is encoded, but for `/`.
pub fn encode(key: &str) -> String {
    key.bytes().fold(String::new(), |mut text, b| {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => text.push(b as char),
            other => _ = write!(text, "%{other:02X}"),
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "Example: GET Object" of the S3 documentation.
    #[test]
    fn the_documented_example() {
        let empty = Digest::of(b"").hex();
        let request = ToSign {
            method: "GET",
            host: "examplebucket.s3.amazonaws.com",
            path: "/test.txt",
            headers: &[("range".to_owned(), "bytes=0-9".to_owned())],
            body: &empty,
            region: "us-east-1",
            at: "2013-05-24T00:00:00Z".parse().unwrap(),
        };
        let credentials = Credentials {
            id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            session: None,
        };
        let headers = sign(&request, &credentials);
        let authorization = &headers.iter().find(|(n, _)| n == "authorization").unwrap().1;
        assert!(
            authorization.ends_with("f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
            "{authorization}"
        );
        assert_eq!(encode("a b/c+d$.txt"), "a%20b/c%2Bd%24.txt");
    }
}
