//! Small value grammars that Docker takes from Go libraries: byte sizes, durations, booleans, port specs.

/// A value that does not follow its grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not a byte size.
    #[error("invalid size: {0:?} (expected a number with an optional unit b, k, m, g, t)")]
    Size(String),
    /// Not a duration.
    #[error("time: invalid duration {0:?}")]
    Duration(String),
    /// A duration without a unit.
    #[error("time: missing unit in duration {0:?}")]
    DurationUnit(String),
    /// A duration with an unknown unit.
    #[error("time: unknown unit {unit:?} in duration {text:?}")]
    DurationUnknownUnit {
        /// The unit.
        unit: String,
        /// The whole text.
        text: String,
    },
    /// Not a port spec.
    #[error("invalid port: {spec:?}: {reason}")]
    Port {
        /// The whole spec.
        spec: String,
        /// What is wrong.
        reason: String,
    },
}

/// `1`, `t`, `true`, `0`, `f`, `false` in the spellings Go's `strconv.ParseBool` takes.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Bytes with binary units, as Docker reads them: `64m`, `1.5 GB`, `512KiB`, `10b`, `100`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, ValueError> {
    let error = || ValueError::Size(text.to_owned());
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(error()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).filter(|n| *n <= i64::MAX as u64).ok_or_else(error);
    }
    let value: f64 = number.parse().map_err(|_| error())?;
    let bytes = value * (1u64 << shift) as f64;
    if bytes.is_finite() && bytes < i64::MAX as f64 { Ok(bytes as u64) } else { Err(error()) }
}

/// A Go duration (`1h30m`, `1.5s`, `300ms`, `-2us`, `0`) in nanoseconds.
pub fn parse_duration(text: &str) -> Result<i64, ValueError> {
    let invalid = || ValueError::Duration(text.to_owned());
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let whole_len = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (whole, after) = rest.split_at(whole_len);
        let fraction_len = match after.strip_prefix('.') {
            Some(f) => 1 + f.find(|c: char| !c.is_ascii_digit()).unwrap_or(f.len()),
            None => 0,
        };
        let (fraction, after) = after.split_at(fraction_len);
        if whole.is_empty() && fraction.len() < 2 {
            return Err(invalid());
        }
        let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_len);
        let scale = unit_nanoseconds(unit, text)?;
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        total = whole.checked_mul(scale).and_then(|w| total.checked_add(w)).ok_or_else(invalid)?;
        total += fraction_nanoseconds(fraction, scale);
        if total > i128::from(i64::MAX) {
            return Err(invalid());
        }
        rest = next;
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| invalid())
}

fn unit_nanoseconds(unit: &str, text: &str) -> Result<i128, ValueError> {
    Ok(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "" => return Err(ValueError::DurationUnit(text.to_owned())),
        _ => return Err(ValueError::DurationUnknownUnit { unit: unit.to_owned(), text: text.to_owned() }),
    })
}

/// `.5` of a unit; digits beyond the eighteenth cannot matter.
fn fraction_nanoseconds(fraction: &str, scale: i128) -> i128 {
    let mut result = 0;
    let mut unit = scale * 1_000_000_000_000_000_000;
    for digit in fraction.bytes().filter(u8::is_ascii_digit).take(18) {
        unit /= 10;
        result += i128::from(digit - b'0') * unit;
    }
    result / 1_000_000_000_000_000_000
}

/// Writes a duration as Go's `time.Duration.String` does (`1h30m0s`, `1.5s`, `300ms`, `0s`).
pub fn format_duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let n = nanoseconds.unsigned_abs();
    let decimal = |value: u64, scale: u64| {
        let (whole, fraction) = (value / scale, value % scale);
        if fraction == 0 {
            return whole.to_string();
        }
        let digits = format!("{fraction:0width$}", width = scale.ilog10() as usize);
        format!("{whole}.{}", digits.trim_end_matches('0'))
    };
    let text = match n {
        0 => return "0s".to_owned(),
        1..1_000 => format!("{n}ns"),
        1_000..1_000_000 => format!("{}µs", decimal(n, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", decimal(n, 1_000_000)),
        _ => {
            let (minutes, rest) = (n / 60_000_000_000, n % 60_000_000_000);
            let seconds = decimal(rest, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, m) => format!("{m}m{seconds}s"),
                (h, m) => format!("{h}h{m}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

/// What an `EXPOSE` word means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// First container port.
    pub first: u16,
    /// Last container port.
    pub last: u16,
    /// Protocol in lower case.
    pub protocol: String,
    /// The protocol was not written in lower case.
    pub odd_case: bool,
    /// An address or host port was given (Docker ignores it).
    pub has_host: bool,
}

impl PortSpec {
    /// `80/tcp` for each port of the range.
    pub fn keys(&self) -> impl Iterator<Item = String> + '_ {
        (self.first..=self.last).map(|p| format!("{p}/{}", self.protocol))
    }
}

/// Parses `[ip:][hostport:]port[-end][/tcp|udp|sctp]`.
pub fn parse_port_spec(spec: &str) -> Result<PortSpec, ValueError> {
    let error = |reason: String| ValueError::Port { spec: spec.to_owned(), reason };
    let (head, container) = spec.rsplit_once(':').map_or(("", spec), |(h, c)| (h, c));
    let (ip, host_port) = head.rsplit_once(':').map_or(("", head), |(i, h)| (i, h));
    let (ports, protocol) = container.split_once('/').unwrap_or((container, ""));
    if ports.is_empty() {
        return Err(error("no port specified".into()));
    }
    let lower = protocol.to_ascii_lowercase();
    if !matches!(lower.as_str(), "" | "tcp" | "udp" | "sctp") {
        return Err(error(format!("invalid proto: {protocol} (expected tcp, udp or sctp)")));
    }
    let bare_ip = ip.strip_prefix('[').and_then(|i| i.strip_suffix(']')).unwrap_or(ip);
    if !bare_ip.is_empty() && bare_ip.parse::<std::net::IpAddr>().is_err() {
        return Err(error(format!("invalid IP address: {ip}")));
    }
    let (first, last) = port_range(ports).ok_or_else(|| error(format!("invalid containerPort: {ports}")))?;
    if !host_port.is_empty() {
        let (h1, h2) = port_range(host_port).ok_or_else(|| error(format!("invalid hostPort: {host_port}")))?;
        if last - first != h2 - h1 && first != last {
            return Err(error(format!(
                "invalid ranges specified for container and host Ports: {ports} and {host_port}"
            )));
        }
    }
    let odd_case = lower != protocol;
    let has_host = !ip.is_empty() || !host_port.is_empty();
    let protocol = if lower.is_empty() { "tcp".to_owned() } else { lower };
    Ok(PortSpec { first, last, protocol, odd_case, has_host })
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    let port = |t: &str| t.parse::<u16>().ok().filter(|_| t.starts_with(|c: char| c.is_ascii_digit()));
    match text.split_once('-') {
        None => port(text).map(|p| (p, p)),
        Some((a, b)) => Some((port(a)?, port(b)?)).filter(|(a, b)| a <= b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("100", 100),
            ("0", 0),
            ("10b", 10),
            ("64m", 64 << 20),
            ("64MB", 64 << 20),
            ("512KiB", 512 << 10),
            ("1.5g", 3 << 29),
            ("1 t", 1 << 40),
            (".5k", 512),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "m",
            "1x",
            "-1",
            "1mm",
            "1ib",
            "1bb",
            "1 000",
            "1e3",
            "99999999999999999999",
            "9999999p",
            "inf",
            "1..2",
        ] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, ns, shown) in [
            ("0", 0, "0s"),
            ("5m", 300_000_000_000, "5m0s"),
            ("1h30m", 5_400_000_000_000, "1h30m0s"),
            ("1.5s", 1_500_000_000, "1.5s"),
            (".5s", 500_000_000, "500ms"),
            ("1.s", 1_000_000_000, "1s"),
            ("300ms", 300_000_000, "300ms"),
            ("-2us", -2_000, "-2µs"),
            ("1µs", 1_000, "1µs"),
            ("7ns", 7, "7ns"),
            ("1h0.25m", 3_615_000_000_000, "1h0m15s"),
        ] {
            assert_eq!(parse_duration(text), Ok(ns), "{text}");
            assert_eq!(format_duration(ns), shown);
        }
        for text in ["", "1", "s", ".s", "1x", "1s2", "--1s", "9999999h", "1 s", "+"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(parse_duration("30").unwrap_err().to_string(), "time: missing unit in duration \"30\"");
    }

    #[test]
    fn ports() {
        let keys = |s: &str| parse_port_spec(s).unwrap().keys().collect::<Vec<_>>();
        assert_eq!(keys("80"), ["80/tcp"]);
        assert_eq!(keys("8000-8002/UDP"), ["8000/udp", "8001/udp", "8002/udp"]);
        assert!(parse_port_spec("80/TCP").unwrap().odd_case);
        assert!(parse_port_spec("127.0.0.1:80:80").unwrap().has_host);
        assert!(parse_port_spec("8080:80").unwrap().has_host);
        assert!(parse_port_spec("[::1]:80:80").unwrap().has_host);
        for bad in ["", "/tcp", "80/icmp", "70000", "5-3", "a", "x:80:80", "1-2:3-5", "80-", "+80", "-1"] {
            assert!(parse_port_spec(bad).is_err(), "{bad}");
        }
    }
}
