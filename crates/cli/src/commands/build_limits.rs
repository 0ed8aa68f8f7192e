//! `kiln build`: how RUN steps are run — network, hosts, entitlements, limits.

use std::collections::BTreeMap;
use std::str::FromStr;

use kiln_engine::executor;
use kiln_engine::graph::{HostIp, Limits, NetworkMode, Resources, Ulimit};
use kiln_engine::request::{Entitlements, RunOptions};

use super::build::BuildArgs;
use super::parse::{attributes, bytes};
use crate::error::CliError;

type Result<T> = std::result::Result<T, CliError>;

/// The smallest `--memory`, as in docker: with less no shell starts.
const LEAST_MEMORY: u64 = 6 << 20;

/// The names that [`executor::Ulimit`] knows.
const ULIMITS: &str = "core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, nproc, rss, rtprio, rttime, \
                       sigpending or stack";

/// What the flags about RUN steps ask for.
pub fn run_options(args: &BuildArgs) -> Result<RunOptions> {
    let network = match args.network.as_str() {
        "default" | "" => NetworkMode::Default,
        "none" => NetworkMode::None,
        "host" => NetworkMode::Host,
        other => return Err(CliError::usage(format!("--network {other}: use default, none or host"))),
    };
    let ulimits = args.ulimits.iter().map(|u| ulimit(u)).collect::<Result<_>>()?;
    let mut allow = entitlements(&args.allow)?;
    // Who gives the build the host's network has granted it, as in docker.
    allow.network_host |= network == NetworkMode::Host;
    let shm_size = args.shm_size.as_deref().map(|s| bytes("--shm-size", s)).transpose()?;
    Ok(RunOptions {
        network,
        extra_hosts: args.add_hosts.iter().map(|h| add_host(h)).collect::<Result<_>>()?,
        limits: Limits { ulimits, shm_size },
        resources: resources(args)?,
        hostname: None,
        allow,
        proxy: proxy_variables(),
    })
}

fn proxy_variables() -> BTreeMap<String, String> {
    const NAMES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];
    let both = NAMES.iter().flat_map(|n| [(*n).to_owned(), n.to_lowercase()]);
    both.filter_map(|n| std::env::var(&n).ok().map(|v| (n, v))).collect()
}

fn entitlements(list: &[String]) -> Result<Entitlements> {
    let mut allow = Entitlements::default();
    for text in list {
        match text.as_str() {
            "network.host" => allow.network_host = true,
            "security.insecure" => allow.security_insecure = true,
            other => return Err(CliError::usage(format!("--allow {other}: use network.host or security.insecure"))),
        }
    }
    Ok(allow)
}

/// `host:ip` or `host=ip`; IPv6 may be bracketed.
fn add_host(text: &str) -> Result<HostIp> {
    let bad = |why: &str| CliError::usage(format!("--add-host {text}: {why}"));
    let (host, ip) = text.split_once('=').or_else(|| text.split_once(':')).ok_or_else(|| bad("expected HOST:IP"))?;
    let bare = ip.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') {
        return Err(bad("expected HOST:IP, with a host name before the colon"));
    }
    if bare != "host-gateway" && bare.parse::<std::net::IpAddr>().is_err() {
        return Err(bad(&format!("{ip:?} is not an IP address; expected HOST:IP or HOST:host-gateway")));
    }
    Ok(HostIp { host: host.to_owned(), ip: bare.to_owned() })
}

/// `type=soft[:hard]`
fn ulimit(text: &str) -> Result<Ulimit> {
    let bad = |why: &str| CliError::usage(format!("--ulimit {text}: {why}"));
    let number = |v: &str| match v {
        "unlimited" | "-1" => Ok(-1),
        v => v.parse::<i64>().ok().filter(|n| *n >= 0).ok_or_else(|| bad("expected NAME=SOFT[:HARD], both numbers")),
    };
    let (name, values) = text.split_once('=').ok_or_else(|| bad("expected NAME=SOFT[:HARD], such as nofile=1024"))?;
    if executor::Ulimit::resource(name).is_none() {
        return Err(bad(&format!("there is no such limit; use {ULIMITS}")));
    }
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard >= 0 && !(0..=hard).contains(&soft) {
        return Err(bad("the soft limit is above the hard one"));
    }
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

fn resources(args: &BuildArgs) -> Result<Resources> {
    let mut r = Resources::default();
    let given = [
        ("--memory", &args.memory),
        ("--memory-swap", &args.memory_swap),
        ("--cpu-shares", &args.cpu_shares),
        ("--cpu-period", &args.cpu_period),
        ("--cpu-quota", &args.cpu_quota),
        ("--cpuset-cpus", &args.cpuset_cpus),
        ("--cpuset-mems", &args.cpuset_mems),
    ];
    for (flag, value) in given.into_iter().filter_map(|(flag, value)| Some((flag, value.as_deref()?))) {
        resource(&mut r, &flag[2..], flag, value)?;
    }
    for text in &args.resources {
        for (name, value) in resource_fields(text)? {
            resource(&mut r, &name, &format!("--resource {name}="), &value)?;
        }
    }
    if let Some(text) = &args.cpus {
        if r.cpu_quota.is_some() || r.cpu_period.is_some() {
            return Err(CliError::usage("--cpus excludes --cpu-quota and --cpu-period: it sets both"));
        }
        let count = text.parse::<f64>().ok().filter(|c| c.is_finite() && (0.01..=65_536.0).contains(c));
        let count = count.ok_or_else(|| CliError::usage(format!("--cpus {text}: expected a number such as 1.5")))?;
        (r.cpu_period, r.cpu_quota) = (Some(100_000), Some((count * 100_000.0) as i64));
    }
    match (r.memory, r.memory_swap) {
        (None, Some(swap)) if swap >= 0 => {
            Err(CliError::usage("--memory-swap is the sum of memory and swap: give --memory, too"))
        }
        (Some(memory), Some(swap)) if (0..i64::try_from(memory).unwrap_or(i64::MAX)).contains(&swap) => {
            Err(CliError::usage("--memory-swap is the sum of memory and swap: it can't be less than --memory"))
        }
        _ => Ok(r),
    }
}

/// The fields of `--resource`. `cpuset-cpus=0,2` needs no quotes: what follows it and has no name is more of it.
fn resource_fields(text: &str) -> Result<Vec<(String, String)>> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for (name, value) in attributes(text)? {
        match fields.last_mut() {
            Some((last, list)) if value.is_empty() && last.starts_with("cpuset-") => {
                list.push(',');
                list.push_str(&name);
            }
            _ => fields.push((name, value)),
        }
    }
    Ok(fields)
}

/// Sets one limit. `flag` is how the user wrote it.
fn resource(r: &mut Resources, name: &str, flag: &str, value: &str) -> Result<()> {
    match name {
        "memory" => {
            let memory = bytes(flag, value)?;
            if memory < LEAST_MEMORY {
                return Err(refused(flag, value, "expected at least 6m"));
            }
            r.memory = Some(memory);
        }
        "memory-swap" if value == "-1" => r.memory_swap = Some(-1),
        "memory-swap" => r.memory_swap = Some(i64::try_from(bytes(flag, value)?).unwrap_or(i64::MAX)),
        // 0 is docker's way to say that there is no limit.
        "cpu-shares" => r.cpu_shares = Some(number(flag, value, 0..=262_144)?).filter(|n| *n > 0),
        "cpu-period" => r.cpu_period = Some(number(flag, value, 1_000..=1_000_000)?),
        "cpu-quota" if matches!(value, "-1" | "0") => r.cpu_quota = None,
        "cpu-quota" => r.cpu_quota = Some(number(flag, value, 1_000..=i64::MAX)?),
        "cpuset-cpus" => r.cpuset_cpus = Some(cpu_list(flag, value)?),
        "cpuset-mems" => r.cpuset_mems = Some(cpu_list(flag, value)?),
        other => {
            return Err(CliError::usage(format!(
                "--resource: {other:?} is not known: use memory=, memory-swap=, cpu-shares=, cpu-period=, cpu-quota=, \
                 cpuset-cpus= or cpuset-mems="
            )));
        }
    }
    Ok(())
}

fn refused(flag: &str, value: &str, why: &str) -> CliError {
    let space = if flag.ends_with('=') { "" } else { " " };
    CliError::usage(format!("{flag}{space}{value}: {why}"))
}

fn number<T: FromStr + PartialOrd + std::fmt::Display>(
    flag: &str,
    value: &str,
    range: std::ops::RangeInclusive<T>,
) -> Result<T> {
    let (least, most) = (range.start(), range.end());
    let number = value.parse().ok().filter(|n| range.contains(n));
    number.ok_or_else(|| refused(flag, value, &format!("expected a number from {least} to {most}")))
}

/// A list of numbers and ranges, as `0-3,7`.
fn cpu_list(flag: &str, value: &str) -> Result<String> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(f), Ok(l)) if f <= l)
    };
    match value.split(',').all(range) {
        true => Ok(value.to_owned()),
        false => Err(refused(flag, value, "expected numbers and ranges such as 0-3,7")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_limits_are_checked() {
        assert_eq!(add_host("a:[::1]").unwrap().ip, "::1");
        assert_eq!(add_host("a=host-gateway").unwrap().ip, "host-gateway");
        for bad in ["a", "a:b", ":1.2.3.4", "a b:1.2.3.4", "a\nb:1.2.3.4", "a#b=1.2.3.4"] {
            assert!(add_host(bad).is_err(), "{bad:?}");
        }
        let limit = ulimit("nofile=10:-1").unwrap();
        assert_eq!((limit.soft, limit.hard), (10, -1));
        for bad in ["nofile", "files=1", "nofile=", "nofile=a", "nofile=10:5", "nofile=-1:5", "nofile=-2"] {
            assert!(ulimit(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn resources_are_checked() {
        let one = |text: &str| {
            let mut r = Resources::default();
            for (name, value) in resource_fields(text)? {
                resource(&mut r, &name, &format!("--resource {name}="), &value)?;
            }
            Ok::<_, CliError>(r)
        };
        let r = one("memory=64m,cpuset-cpus=0-1,3,cpu-shares=512").unwrap();
        assert_eq!((r.memory, r.cpuset_cpus.as_deref(), r.cpu_shares), (Some(64 << 20), Some("0-1,3"), Some(512)));
        for bad in ["memory=1", "cpu-shares=-5", "cpuset-cpus=a", "cpuset-cpus=3-1", "cpu-quota=10", "pids=3", "memory"]
        {
            assert!(one(bad).is_err(), "{bad:?}");
        }
    }
}
