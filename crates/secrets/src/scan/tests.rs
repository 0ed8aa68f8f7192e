use base64::Engine as _;
use proptest::prelude::*;

use super::*;

fn searcher(value: &[u8]) -> Searcher {
    Searcher::new(&[Secret::new("s", Origin::Secret, value)], true)
}

fn encodings(hits: &[Hit]) -> Vec<Encoding> {
    hits.iter()
        .filter_map(|h| match h.kind {
            HitKind::Secret { encoding, .. } => Some(encoding),
            HitKind::Shape(_) => None,
        })
        .collect()
}

#[test]
fn finds_every_encoding_within_other_text() {
    let secret = b"p@ss \"word\"\\ 123";
    let s = searcher(secret);
    let engine = base64::engine::general_purpose::STANDARD;
    let json = serde_like_json(secret);
    for (text, want) in [
        (secret.to_vec(), Encoding::Plain),
        (b"70407373 skip".to_vec(), Encoding::Plain),
        (secret.iter().flat_map(|b| format!("{b:02X}").into_bytes()).collect(), Encoding::Hex),
        (b"p%40ss%20%22word%22%5C%20123".to_vec(), Encoding::Url),
        (json, Encoding::Json),
    ] {
        let hits = s.search(&[b"before ", text.as_slice(), b" after"].concat());
        if text.ends_with(b"skip") {
            assert!(hits.is_empty());
        } else {
            assert!(encodings(&hits).contains(&want), "{want:?} not found: {hits:?}");
        }
    }
    for prefix in ["", "u:", "xx:", "user:"] {
        let text = engine.encode([prefix.as_bytes(), secret, b" tail"].concat());
        assert!(encodings(&s.search(text.as_bytes())).contains(&Encoding::Base64), "behind {prefix:?}");
    }
}

fn serde_like_json(secret: &[u8]) -> Vec<u8> {
    String::from_utf8_lossy(secret).replace('\\', "\\\\").replace('"', "\\\"").into_bytes()
}

#[test]
fn finds_wrapped_base64_of_a_long_secret() {
    let secret: Vec<u8> = (0..400u32).map(|i| (i * 7919 % 251) as u8).collect();
    let text = base64::engine::general_purpose::STANDARD.encode(&secret);
    for width in [64, 76] {
        for lead in 0..width {
            let body: Vec<u8> = std::iter::repeat_n(b'A', lead).chain(text.bytes()).collect();
            let wrapped: Vec<u8> = body.chunks(width).flat_map(|l| [l, b"\n"].concat()).collect();
            assert!(!searcher(&secret).search(&wrapped).is_empty(), "width {width}, lead {lead}");
        }
    }
}

#[test]
fn finds_short_secrets_in_wrapped_and_indented_lines() {
    let secret = b"correct horse battery staple";
    let engine = base64::engine::general_purpose::STANDARD;
    for lead in 0..80 {
        let body = [&vec![b'.'; lead][..], secret, b" and more of it"].concat();
        let hex: String = body.iter().map(|b| format!("{b:02x}")).collect();
        for (text, want) in [(engine.encode(&body), Encoding::Base64), (hex, Encoding::Hex)] {
            for (width, between) in [(76, "\n"), (64, "\r\n"), (60, "\\n"), (70, "\n      "), (70, "\" +\n  \"")] {
                let lines: Vec<&str> = text.as_bytes().chunks(width).map(|l| std::str::from_utf8(l).unwrap()).collect();
                let hits = searcher(secret).search(lines.join(between).as_bytes());
                assert_eq!(encodings(&hits), [want], "lead {lead}, width {width}, between {between:?}");
            }
        }
    }
}

#[test]
fn a_token_in_a_configuration_file_is_a_secret_alone() {
    let npmrc = b"registry=https://registry.example.com/\n//registry.example.com/:_authToken=Zx81abcDEF0123456789ghi\nalways-auth=true\n";
    let s = searcher(npmrc);
    assert_eq!(encodings(&s.search(b"token: Zx81abcDEF0123456789ghi.")), [Encoding::Part]);
    assert!(s.search(b"registry=https://registry.example.com/\nalways-auth=true\n").is_empty());
}

#[test]
fn what_is_public_or_common_proves_nothing() {
    let public = b"the public half 0123456789 of a key ABCDEF 0123456789 abcdef, long enough for a line of its own";
    let engine = base64::engine::general_purpose::STANDARD;
    let shown = engine.encode(public);
    let file = format!("-----BEGIN KEY-----\n{shown}\nU0VDUkVUIHBhcnQgb2YgaXQgMDEyMzQ1Njc4OQ==\n-----END KEY-----\n");
    let secret = Secret::new("k", Origin::SshKey, file.as_bytes()).with_public_part(&public[..]);
    let s = Searcher::new(&[secret], false);
    assert!(s.search(shown.as_bytes()).is_empty(), "the public key is in the private one's file");
    assert_eq!(encodings(&s.search(b"x U0VDUkVUIHBhcnQgb2YgaXQgMDEyMzQ1Njc4OQ== y")), [Encoding::Part]);
    // Another file of the same kind in base64.
    let other = engine.encode("-----BEGIN KEY-----\nc29tZXRoaW5nIGVsc2UsIGFzIGxvbmcgYXMgaXQ=\n-----END KEY-----\n");
    assert!(s.search(other.as_bytes()).is_empty());
}

#[test]
fn many_secrets_are_found_as_well() {
    let secrets: Vec<Secret> = (0..200)
        .map(|i| Secret::new(format!("s{i}"), Origin::Secret, format!("value number {i:03} of many")))
        .collect();
    let s = Searcher::new(&secrets, true);
    let hits = s.search(b"x value number 123 of many, and dmFsdWUgbnVtYmVyIDA3NyBvZiBtYW55 y");
    let names: Vec<&HitKind> = hits.iter().map(|h| &h.kind).collect();
    assert!(
        matches!(&names[..], [HitKind::Secret { name: a, encoding: Encoding::Plain, .. }, HitKind::Secret { name: b, encoding: Encoding::Base64, .. }] if a == "s123" && b == "s77"),
        "{names:?}"
    );
}

#[test]
fn a_line_of_a_private_key_is_enough() {
    let key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\nQyNTUxOQAAACDcMPG1Q9n8Zl0W1n4bq2m7r8yq0d8M2n3b1u5w7x9zAQAAAJj1lK1N9ZS\n-----END OPENSSH PRIVATE KEY-----\n";
    let s = searcher(key.as_bytes());
    let hits = s.search(b"x QyNTUxOQAAACDcMPG1Q9n8Zl0W1n4bq2m7r8yq0d8M2n3b1u5w7x9zAQAAAJj1lK1N9ZS y");
    assert_eq!(encodings(&hits), [Encoding::Part]);
    let common = s.search(b"b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW");
    assert!(encodings(&common).is_empty(), "the part that every key has proves nothing");
}

#[test]
fn shapes_need_more_than_their_prefix() {
    let s = Searcher::new(&[], true);
    assert!(s.search(b"-----BEGIN PRIVATE KEY----- in the text of a library").is_empty());
    assert!(s.search(b"MAKIAVELLI AKIASHORT").is_empty());
    let hits = s.search(b"id=AKIAIOSFODNN7EXAMPLE;");
    assert_eq!(hits[0].kind, HitKind::Shape(Shape::AwsAccessKey));
    for (text, shape) in [
        (
            r#"{"private_key": "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\n"#,
            Shape::PrivateKey,
        ),
        (&format!("DefaultEndpointsProtocol=https;AccountKey={}==", "aB3/".repeat(22)), Shape::AzureAccountKey),
        ("key: sk_live_4eC39HqLyjWDarjtT1zdp7dc", Shape::StripeKey),
    ] {
        let hits = s.search(text.as_bytes());
        assert!(hits.iter().any(|h| h.kind == HitKind::Shape(shape)), "{text}: {hits:?}");
    }
}

/// The forms of a secret that is made of all that encoders disagree about, as they write it.
#[test]
fn finds_what_encoders_of_many_languages_write() {
    let secret = "Zq7/k\"W \\v&<p+9'tX=m~8(é)*!;";
    let s = searcher(secret.as_bytes());
    let url = [
        ("RFC 3986", "Zq7%2Fk%22W%20%5Cv%26%3Cp%2B9%27tX%3Dm~8%28%C3%A9%29%2A%21%3B"),
        ("Python's quote", "Zq7/k%22W%20%5Cv%26%3Cp%2B9%27tX%3Dm~8%28%C3%A9%29%2A%21%3B"),
        ("Python's quote_plus", "Zq7%2Fk%22W+%5Cv%26%3Cp%2B9%27tX%3Dm~8%28%C3%A9%29%2A%21%3B"),
        ("Java's URLEncoder", "Zq7%2Fk%22W+%5Cv%26%3Cp%2B9%27tX%3Dm%7E8%28%C3%A9%29*%21%3B"),
        ("encodeURIComponent", "Zq7%2Fk%22W%20%5Cv%26%3Cp%2B9'tX%3Dm~8(%C3%A9)*!%3B"),
        ("encodeURI", "Zq7/k%22W%20%5Cv&%3Cp+9'tX=m~8(%C3%A9)*!;"),
        ("small digits", "Zq7%2fk%22W%20%5cv%26%3cp%2b9%27tX%3dm~8%28%c3%a9%29%2a%21%3b"),
    ];
    let json = [
        ("JSON.stringify", r#"Zq7/k\"W \\v&<p+9'tX=m~8(é)*!;"#),
        ("Go's json.Marshal", r#"Zq7/k\"W \\v\u0026\u003cp+9'tX=m~8(é)*!;"#),
        ("Python's json.dumps", r#"Zq7/k\"W \\v&<p+9'tX=m~8(\u00e9)*!;"#),
        ("PHP's json_encode", r#"Zq7\/k\"W \\v&<p+9'tX=m~8(\u00e9)*!;"#),
        ("Gson", r#"Zq7/k\"W \\v\u0026\u003cp+9\u0027tX\u003dm~8(é)*!;"#),
        (".NET", r#"Zq7/k\u0022W \\v\u0026\u003Cp\u002B9\u0027tX=m~8(\u00E9)*!;"#),
    ];
    for (texts, want) in [(&url[..], Encoding::Url), (&json[..], Encoding::Json)] {
        for (writer, text) in texts {
            let hits = s.search(format!("x={text}&y").as_bytes());
            assert_eq!(encodings(&hits), [want], "{writer}: {text}");
            assert_eq!(hits[0].offset, 2, "{writer}");
        }
    }
    assert!(encodings(&s.search(url[0].1.replace("%22", "%23").as_bytes())).is_empty());
    let utf16: Vec<u8> = secret.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(encodings(&s.search(&utf16)), [Encoding::Utf16]);
}

#[test]
fn spellings_are_found_where_no_four_letters_stand_together() {
    for (secret, url, json) in [
        ("p@s/w&d!", "p%40s/w%26d!", r"p@s\/w\u0026d!"),
        ("\u{1}\u{2}\u{8}\"", "%01%02%08%22", r#"\u0001\u0002\b\""#),
        (r"\/\/\/\/", "%5c/%5c/%5c/%5c/", r"\\\/\\/\\\/\\/"),
        ("ключ🔑", "%D0%BA%D0%BB%D1%8E%D1%87%F0%9F%94%91", r"\u043a\u043b\u044e\u0447\ud83d\udd11"),
    ] {
        let s = searcher(secret.as_bytes());
        assert_eq!(encodings(&s.search(format!("a{url}b").as_bytes())), [Encoding::Url], "{url}");
        assert_eq!(encodings(&s.search(format!("a{json}b").as_bytes())), [Encoding::Json], "{json}");
    }
}

#[test]
fn lines_may_end_in_other_ways_and_what_is_around_does_not_count() {
    let found = |value: &str, text: &str| encodings(&searcher(value.as_bytes()).search(text.as_bytes()));
    let (unix, dos) = ("user = me\npassword = my own words\n", "user = me\r\npassword = my own words\r\n");
    for (value, text) in [(unix, dos), (dos, unix), (unix, "user = me password = my own words"), (dos, dos)] {
        assert_eq!(found(value, &format!("a\n{text}b")), [Encoding::Plain], "{text:?}");
    }
    assert_eq!(found("  \n a few words\n\n", "x=a few words;"), [Encoding::Plain]);
}

#[test]
fn a_file_full_of_one_thing_does_not_hide_another() {
    let key = |i| format!("id=AKIA{i:016};\n");
    let many: String = (0..500).map(key).collect();
    let hits = searcher(b"correct horse battery").search(format!("{many} correct horse battery").as_bytes());
    assert_eq!(encodings(&hits), [Encoding::Plain]);
    assert_eq!(hits.len(), 2, "of each kind the first");
}

#[test]
fn the_middle_of_a_long_secret_is_found_in_every_form() {
    let engine = base64::engine::general_purpose::STANDARD;
    let text: String = (0..40_000u32).map(|i| char::from_u32(0x20 + i * 7_919 % 900).unwrap()).collect();
    let s = searcher(text.as_bytes());
    for form in [text.clone(), engine.encode(&text), serde_json_ascii(&text)] {
        for cut in [1 << 20, 65_536, 4_096, 999] {
            let mut scan = s.scan();
            form.as_bytes().chunks(cut).for_each(|chunk| scan.feed(chunk));
            assert_eq!(scan.finish().len(), 1, "cut into {cut}");
        }
    }
}

fn serde_json_ascii(text: &str) -> String {
    let one = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_ascii() && c != '\u{7f}' => c.to_string(),
        c => format!("\\u{:04x}", c as u32),
    };
    text.chars().map(one).collect()
}

proptest! {
    #[test]
    fn cuts_do_not_hide_a_secret(lead in 0usize..5000, cuts in proptest::collection::vec(1usize..3000, 1..40)) {
        let secret = b"correct horse battery staple";
        let mut text = vec![b'.'; lead];
        text.extend_from_slice(secret);
        text.extend(std::iter::repeat_n(b'.', 700));
        let mut scan = searcher(secret).scan();
        let mut rest = text.as_slice();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break; }
            let (head, tail) = rest.split_at((*cut).min(rest.len()));
            scan.feed(head);
            rest = tail;
        }
        let hits = scan.finish();
        prop_assert_eq!(hits.len(), 1);
        prop_assert_eq!(hits[0].offset, lead as u64);
    }
}
