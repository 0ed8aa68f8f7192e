//! Grammars of names that some checks need: image references, platforms, names that smell of secrets.

/// Whether a name could be an image reference (or a stage name, which has the same form). Anything with a scheme is another kind of source.
pub(crate) fn is_reference(name: &str) -> bool {
    if name.contains("://") {
        return true;
    }
    let (rest, digest) = name.split_once('@').map_or((name, None), |(n, d)| (n, Some(d)));
    if digest.is_some_and(|d| !is_digest(d)) {
        return false;
    }
    let slash = rest.rfind('/').map_or(0, |i| i + 1);
    let (path, tag) = match rest[slash..].find(':') {
        Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
        None => (rest, None),
    };
    if tag.is_some_and(|t| !is_tag(t)) {
        return false;
    }
    let is_hex64 = path.len() == 64 && path.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let path = match path.split_once('/') {
        Some((domain, path)) if is_domain(domain) => path,
        _ => path,
    };
    !is_hex64 && path.split('/').all(is_path_component)
}

fn is_domain(text: &str) -> bool {
    let special = text.contains(['.', ':']) || text == "localhost" || text != text.to_lowercase();
    let host = text.split(':').next().unwrap_or(text);
    special
        && !host.is_empty()
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'[' | b']'))
}

fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, hex)| {
        !algorithm.is_empty() && hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&text.len())
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

/// Lower-case letters and digits, joined by `.`, `_`, `__` or dashes.
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut separators = text.split(alphanumeric).filter(|s| !s.is_empty());
    text.starts_with(alphanumeric)
        && text.ends_with(alphanumeric)
        && separators.all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

/// Operating system and architecture of a platform, normalised; `None` when the text is not one.
pub(crate) fn platform_parts(text: &str) -> Option<(String, String)> {
    let lower = text.to_ascii_lowercase();
    let mut parts = lower.split('/');
    let first = parts.next()?;
    let second = parts.next();
    if parts.clone().count() > 1 || lower.split('/').any(|p| p.is_empty() || !p.bytes().all(platform_byte)) {
        return None;
    }
    const SYSTEMS: &[&str] =
        &["linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "solaris", "wasip1", "macos"];
    match second {
        Some(arch) => Some((first.to_owned(), architecture(arch).to_owned())),
        None if SYSTEMS.contains(&first) => Some((first.to_owned(), "amd64".to_owned())),
        None => {
            const KNOWN: &[&str] =
                &["amd64", "arm64", "arm", "386", "ppc64le", "s390x", "riscv64", "mips64le", "loong64", "wasm"];
            let arch = architecture(first);
            KNOWN.contains(&arch).then(|| ("linux".to_owned(), arch.to_owned()))
        }
    }
}

fn platform_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')
}

fn architecture(name: &str) -> &str {
    match name {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "i386" => "386",
        "armhf" | "armel" => "arm",
        other => other,
    }
}

/// Whether a variable's name says that it holds a secret: one of its words does, and none says otherwise.
pub fn is_secret_name(name: &str) -> bool {
    const SECRET: &[&str] =
        &["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
    const HARMLESS: &[&str] = &["public", "file", "version"];
    let has = |list: &[&str]| name.split('_').any(|word| list.iter().any(|l| word.eq_ignore_ascii_case(l)));
    has(SECRET) && !has(HARMLESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let digest = format!("x@sha256:{}", "a".repeat(64));
        for good in [
            "alpine",
            "alpine:3.20",
            "docker.io/library/a_b",
            "localhost:5000/x/y:T",
            "a--b",
            "Foo.example/x",
            "ghcr.io/o/r",
            "scratch",
            "deb://bookworm",
            "[::1]:5000/x",
            &digest,
        ] {
            assert!(is_reference(good), "{good}");
        }
        for bad in
            ["", "Alpine", "a/", "/a", "a:", ":tag", "a b", "-a", "a___b", "x@sha256:1", "a:b:c", "alpine:${", "a..b"]
        {
            assert!(!is_reference(bad), "{bad}");
        }
        assert!(!is_reference(&"a".repeat(64)));
    }

    #[test]
    fn platforms_and_secrets() {
        let parts = |p| platform_parts(p).map(|(o, a)| format!("{o} {a}"));
        assert_eq!(parts("linux/x86_64").as_deref(), Some("linux amd64"));
        assert_eq!(parts("linux/arm/v7").as_deref(), Some("linux arm"));
        assert_eq!(parts("arm64").as_deref(), Some("linux arm64"));
        assert_eq!(parts("").or(parts("linux//x")).or(parts("a/b/c/d")).or(parts("nonsense")), None);
        for secret in
            ["api_key", "DATABASE_PASSWORD", "GITHUB_TOKEN", "secret_MESSAGE", "AUTH", "aws_secret_access_key"]
        {
            assert!(is_secret_name(secret), "{secret}");
        }
        for harmless in ["MONKEY", "PUBLIC_KEY", "TOKEN_FILE", "PASSWORD_VERSION", "AUTHOR", "tokens", ""] {
            assert!(!is_secret_name(harmless), "{harmless}");
        }
    }
}
