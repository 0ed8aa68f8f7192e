//! The parts of a PEM file that everybody may see.
//!
//! A bundle of certificate authorities is often given as a secret, and the same certificates are in the base image.

const PUBLIC: [&[u8]; 5] = [b"CERTIFICATE", b"TRUSTED CERTIFICATE", b"X509 CRL", b"PUBLIC KEY", b"RSA PUBLIC KEY"];

/// `value` without its certificates and public keys (RFC 7468), and nothing if only comments are left then.
pub(crate) fn private_part(value: Vec<u8>) -> Vec<u8> {
    let mut rest: Vec<u8> = Vec::new();
    let mut end: Option<Vec<u8>> = None;
    let mut found = false;
    for line in value.split_inclusive(|b| *b == b'\n') {
        let text = line.trim_ascii();
        match &end {
            Some(last) if text == last => end = None,
            Some(_) => {}
            None => match PUBLIC.iter().find(|label| text == marker(b"BEGIN", label)) {
                Some(label) => (found, end) = (true, Some(marker(b"END", label))),
                None => rest.extend_from_slice(line),
            },
        }
    }
    if !found || end.is_some() {
        return value;
    }
    let is_comment = |line: &[u8]| line.trim_ascii().is_empty() || line.starts_with(b"#");
    if rest.split(|b| *b == b'\n').all(is_comment) { Vec::new() } else { rest }
}

fn marker(word: &[u8], label: &[u8]) -> Vec<u8> {
    [b"-----", word, b" ", label, b"-----"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMIIB8jCCAZ+gAwIBAgIU\n-----END CERTIFICATE-----\n";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----\n";

    fn rest(value: &str) -> String {
        String::from_utf8(private_part(value.into())).unwrap()
    }

    #[test]
    fn certificates_are_public() {
        assert_eq!(rest(&format!("# Example CA\r\n{CERTIFICATE}\n# Another\n{CERTIFICATE}")), "");
    }

    #[test]
    fn a_key_among_them_is_not() {
        assert_eq!(rest(&format!("{CERTIFICATE}{KEY}{CERTIFICATE}")), KEY);
        assert_eq!(rest(&format!("{CERTIFICATE}password=hunter22\n")), "password=hunter22\n");
    }

    #[test]
    fn what_is_no_whole_block_is_all_secret() {
        let cut = &CERTIFICATE[..40];
        for value in ["hunter22", cut, "-----BEGIN CERTIFICATE----- hunter22", KEY, "# hunter22"] {
            assert_eq!(rest(value), value);
        }
    }
}
